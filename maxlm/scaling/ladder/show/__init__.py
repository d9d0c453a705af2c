"""What a ladder shows: tables, charts, TensorBoard, one HTML page."""
