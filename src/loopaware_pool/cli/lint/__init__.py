"""`loopaware-pool lint PATHS`: find, in source, how programs come to leak connections and registrations."""
