"""What a sweep will take: runs, what they share, memory, hours; and every layout checked before anything is spent."""
