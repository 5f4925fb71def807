"""Downloads corpora from their publishers: files, archives and clips cut from videos."""
