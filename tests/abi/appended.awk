# Reads the lock of a release, then today's: whatever stood in the first must stand in the second (docs/abi.md, "What may
# change"). A struct may have grown, but for those that lie inside others; a reserved field may have got a name.

# What may change in a line is cut off.
function kept(line) {
  if (line ~ /^macro DUET(P_MINOR|_API_VERSION|P_ABI) /) return ""
  if (line ~ /^constant [A-Z_]+_COUNT / || line ~ /^struct duetp_layer .* tensor: /) return ""  # the last of it, and as many as there are
  if (line ~ /^struct [a-z_]+ [0-9]+ bytes$/ && line !~ /^struct duetp_(ref|shape|tensor) /) sub(/[0-9]+ bytes$/, "", line)
  return line
}
function unnamed(line) { sub(/ [a-z_0-9]+: /, " ", line); return line }  # a field's place and type

NR == FNR { if (kept($0) != "") { old[kept($0)] = $0 } next }
{ new[kept($0)]; new_place[unnamed($0)] }
END {
  for (line in old)
    if (!(line in new) && !(line ~ / reserved: / && unnamed(line) in new_place)) {
      print "gone or changed: " old[line] | "sort"
      failed = 1
    }
  exit failed
}
