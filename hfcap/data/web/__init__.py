"""Images from the web and from datasets on the Hub."""
