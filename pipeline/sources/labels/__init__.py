"""Labels beside the images of a folder: class folders, tables, YOLO, COCO and VOC."""
