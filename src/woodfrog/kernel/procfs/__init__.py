"""One parser per file of proc(5). Text in, plain values out."""
