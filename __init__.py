"""DejaVid: videos as temporal sequences of embeddings, classified by learned, weighted, diagonal-free DTW."""

__version__ = "0.1.0"
