// Read from a disk, a page may not fetch another: the search then lists its hits without their surroundings.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
