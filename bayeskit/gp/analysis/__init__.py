"""What is asked of a fitted GP: leave-one-out predictions and export."""
