"""The service as its operators run it: behind proxies, with several workers, restarted under load, watched."""
