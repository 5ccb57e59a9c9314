"""What a sweep will take: runs, what they share, memory, hours, and a check of every layout, before anything is spent."""
