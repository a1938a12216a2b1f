"""What the server tells of itself: metrics, their endpoint, and logs. A leaf: every layer may import it, and it imports none of them."""
