"""The playground in a real browser, in front of a real server and a provider of our own."""
