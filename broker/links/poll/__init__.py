"""Long polling: `requests` answers polls, `messages` are their forms, `session` lives from poll to poll."""
