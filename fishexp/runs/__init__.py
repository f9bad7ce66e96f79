"""What runs there are: listed, shown, compared and removed by their records and folders; ``python -m fishexp.runs``."""
