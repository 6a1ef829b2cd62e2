// A page opened as a file may not fetch its neighbours, so search results come without their summaries there.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
