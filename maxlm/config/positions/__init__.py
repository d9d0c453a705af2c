"""How a model knows where its tokens are: added to vectors, turned, or added to scores."""
