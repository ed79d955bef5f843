//! The settings of the encoding of signatures: [`WireStyle`].

/// The settings of the encoding of a canvas in messages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WireStyle {
    /// Whether each step of a chain is the callback of the previous one, as in
    /// protocol 1, which has no chains.
    pub(crate) linked: bool,
    /// Whether the errbacks of a chord are also those of its header
    /// (`task_allow_error_cb_on_chord_header`).
    pub(crate) header_errbacks: bool,
}
