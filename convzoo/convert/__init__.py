"""Foreign weights and configurations, and ours: Darknet, MindSpore, torchvision, timm."""
