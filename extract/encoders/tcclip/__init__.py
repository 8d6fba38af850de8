"""TC-CLIP (ECCV 2024) on transformers' CLIPModel: frames that know the video, prompts that look at it."""
