"""One folder per operator; in each, one public function that chooses the implementation."""
