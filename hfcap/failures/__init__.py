"""What lies outside of hfcap and may fail: the Hub, the operating system."""
