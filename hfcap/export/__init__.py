"""Trained captioners as files of other runtimes (ONNX, OpenVINO), checked by running them."""
