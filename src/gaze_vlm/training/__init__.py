"""What training needs beside the models: views that move image, boxes and gaze together, averaging, collators."""
