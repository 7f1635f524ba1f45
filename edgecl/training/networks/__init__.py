"""Networks: bodies, heads, pretrained trunks, export."""
