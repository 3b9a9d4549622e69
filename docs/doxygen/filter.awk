# Shows a header to doxygen: its plain comments become documentation, so that the headers need no marks. A comment of its own
# describes what follows, one behind code describes that; where that is several names, each of them. The fields `size`,
# `reserved` and `run` mean the same everywhere. A line of a header stays a line.

# each("  const char *id, *name;", text): the names one by one, with the text behind each but the first `n_done`
function each(code, text, n_done,    end, type, names, n, i, out) {
  end = code ~ /;$/ ? ";" : ","  # fields, or enumerators
  type = code
  sub(/[,=;].*/, "", type)
  sub(/[^ ]+ *$/, "", type)
  n = split(substr(code, length(type) + 1), names, / *[,;] */)
  for (i = 1; i <= n; i++)
    if (names[i] != "") out = out type names[i] end (names[i] in common ? behind(common[names[i]]) : i > n_done ? behind(text) : "") " "
  return out
}
function behind(text) { return " /**< " text " */" }
function is_list(code) {
  if (cpp) return code ~ /^  [A-Za-z_0-9:<> ]+ [a-z_0-9]+( = [0-9.f]+)?, .*;$/
  return code ~ /^ +([a-z_0-9: ]+ )?[*A-Za-z_0-9]+(\[[0-9]+\])?, .*[,;]$/
}

BEGIN {
  common["size"] = "sizeof the struct when its writer was compiled"
  common["reserved"] = "0"
  common["run"] = "what every stage has"
}

FNR == 1 {
  cpp = FILENAME ~ /hpp$/
  sub(/^\/\* */, "/** @file\n ")
  sub(/^\/\/ */, "/// @file\n/// ")
  head = cpp
  print
  next
}
head && /^\/\// { print "/" $0; next }
{
  head = 0
  above = lead
  lead = ""
}
/^ *\/[*\/] ----/ {  # a section's title; text below it describes the first declaration
  if (cpp || /\*\/ *$/) print ""
  else print "/**"
  next
}
cpp && /^ *\/\/ / { sub(/\/\/ /, "/// "); print; next }
cpp && match($0, / +\/\/ /) {
  code = substr($0, 1, RSTART - 1)
  text = substr($0, RSTART + RLENGTH)
  print is_list(code) ? each(code, text, 0) : code " ///< " text
  next
}
cpp || /^ \*/ { print; next }

/^ *\/\* / {
  if (/\*\/$/) lead = $0
  gsub(/^ *\/\* | *\*\/$/, "", lead)
  sub(/\/\* /, "/** ")
  print
  next
}
match($0, /[^ ] +\/\* /) && (!index(substr($0, RSTART), "*/") || index(substr($0, RSTART), "*/") == length($0) - RSTART) {
  code = substr($0, 1, RSTART)
  text = substr($0, RSTART + RLENGTH)
  whole = sub(/ *\*\/$/, "", text)
  print whole && is_list(code) ? each(code, text, 0) : code " /**< " text (whole ? " */" : "")
  next
}
/^  [a-z_0-9]+ (size|reserved|run);$/ || is_list($0) { print each($0, above, 1); next }
{ print }
