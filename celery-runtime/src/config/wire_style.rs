//! Settings that change how signatures are written.

/// Settings that say in which form a canvas travels.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WireStyle {
    /// Each step of a chain is the callback of the one before, as protocol 1
    /// has it, which knows no chains.
    pub(crate) linked: bool,
    /// Errbacks of a chord are also its header's
    /// (`task_allow_error_cb_on_chord_header`).
    pub(crate) header_errbacks: bool,
}
