//! The name of this machine.

/// Returns the machine's host name, the part of a node name after the `@`.
pub(crate) fn hostname() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}
