# Writes what a C header fixes in a program's bytes, from `readelf --debug-dump=info`: the compiler's own account of it, in
# which no field can be missing. Names that do not begin with duet are left out, but for functions: the probe declares a
# pointer function_NAME for each.

# value(line): what stands behind the first colon, without how it is stored: "(indirect string, offset: 0x1f): duet_status"
function value(line) {
  sub(/^[^:]*: */, "", line)
  sub(/^\([^)]*\):? */, "", line)
  sub(/[ \t]+$/, "", line)
  return line
}

# Type names are written as in C, but a pointer's and a function's follow what they point to and return: no name to wrap them around.
function type_name(id,    tag, target) {
  if (id == "") return "void"
  tag = tags[id]
  target = types[id]
  if (tag == "pointer_type") return type_name(target) "*"
  if (tag == "const_type") return tags[target] == "pointer_type" ? type_name(target) " const" : "const " type_name(target)
  if (tag == "volatile_type" && tags[target] == "const_type") return "const volatile " type_name(types[target])
  if (tag == "volatile_type") return "volatile " type_name(target)
  if (tag == "array_type") return type_name(target) extents[id]
  if (tag == "subroutine_type") return type_name(target) " (" parameters[id] ")"
  if (id in names) return names[id]
  print "abi.awk: a " tag " without a name" > "/dev/stderr"
  failed = 1
  return "?"
}

/^ *<[0-9a-f]+><[0-9a-f]+>: Abbrev Number: [1-9]/ {
  split($1, part, /[<>]/)
  depth = part[2] + 0
  id = part[4]
  tag = $NF
  gsub(/^\(DW_TAG_|\)$/, "", tag)
  tags[id] = tag
  order[++count] = id
  parent[id] = depth > 0 ? open[depth - 1] : ""
  open[depth] = id
}
/^ *<[0-9a-f]+> +DW_AT_name / { names[id] = value($0) }
/^ *<[0-9a-f]+> +DW_AT_byte_size / { sizes[id] = value($0) }
/^ *<[0-9a-f]+> +DW_AT_data_member_location/ { offsets[id] = value($0) }
/^ *<[0-9a-f]+> +DW_AT_(bit_size|data_bit_offset)/ { bits[id] = 1 }
/^ *<[0-9a-f]+> +DW_AT_const_value/ { constants[id] = value($0) }
/^ *<[0-9a-f]+> +DW_AT_count/ { extents[parent[id]] = extents[parent[id]] "[" value($0) "]" }
/^ *<[0-9a-f]+> +DW_AT_upper_bound/ { extents[parent[id]] = extents[parent[id]] "[" value($0) + 1 "]" }
/^ *<[0-9a-f]+> +DW_AT_declaration/ { incomplete[id] = 1 }
/^ *<[0-9a-f]+> +DW_AT_type / { match($0, /<0x[0-9a-f]+>/); types[id] = substr($0, RSTART + 3, RLENGTH - 4) }

END {
  for (i = count; i > 0; i--) {  # backwards, so that the inner of nested function types come first
    id = order[i]
    if (tags[id] == "formal_parameter" && tags[parent[id]] == "subroutine_type") {
      rest = parameters[parent[id]]
      parameters[parent[id]] = type_name(types[id]) (rest == "" ? "" : ", " rest)
    }
  }
  for (i = 1; i <= count; i++) {
    id = order[i]
    tag = tags[id]
    name = names[id]
    if (tag == "variable" && sub(/^function_/, "", name)) {
      print "function " name " " type_name(types[types[id]])
    } else if (name !~ /^(duet|DUET)/ && tag != "member") {
      continue
    } else if (tag == "enumerator") {
      print "constant " name " = " constants[id]
    } else if (tag == "typedef" && tags[types[id]] != "structure_type") {
      print "type " name " " type_name(types[id])
    } else if (tag == "structure_type" && !(id in incomplete)) {
      print "struct " name " " sizes[id] " bytes"
    } else if (tag == "member" && names[parent[id]] ~ /^duet/) {
      if (tags[parent[id]] != "structure_type" || id in bits) {
        print "abi.awk: " names[parent[id]] "." name ": unions and bit fields are not understood" > "/dev/stderr"
        failed = 1
      }
      print "struct " names[parent[id]] " +" offsets[id] " " name ": " type_name(types[id])
    }
  }
  exit failed
}
