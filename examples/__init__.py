"""Real small things to govern: an order service over HTTP, and the demo that plays agents against it."""
