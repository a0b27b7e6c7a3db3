"""SAM 2 (Ravi et al., 2024, arXiv 2408.00714) for single images: image encoder, and mask decoder prompted by a vector."""
