"""The web quiz: which tiles are real? Its set of tiles, its answers, its pages, and what the answers say."""
