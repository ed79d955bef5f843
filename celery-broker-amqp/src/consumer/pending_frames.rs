//! Settlement frames that are not known to be written.

use std::collections::BTreeMap;

use futures_util::future::{BoxFuture, FutureExt, Shared};

/// The writing of one frame.
///
/// lapin completes it when the socket has accepted the last byte of the frame
/// (`IoLoop::write_to_stream`), not when the frame is queued. From then on only the
/// end of the connection or of the server keeps the frame from being read. Frames
/// of a channel are written in the order in which they were queued. An error means
/// that the connection or the channel has ended before the frame was written in
/// full.
pub(super) type FrameWrite = Shared<BoxFuture<'static, lapin::Result<()>>>;

/// A frame and the deliveries that it settles.
pub(super) struct SettlementFrame {
    pub(super) tags: Vec<u64>,
    pub(super) write: FrameWrite,
}

impl SettlementFrame {
    /// Queues a frame: lapin sends it once its future has been polled, even if
    /// nothing polls it again.
    pub(super) fn queue(
        tags: Vec<u64>,
        write: impl Future<Output = lapin::Result<()>> + Send + 'static,
    ) -> Self {
        let write = write.boxed().shared();
        let _ = write.clone().now_or_never();
        Self { tags, write }
    }
}

/// The deliveries whose settlement is being written or is in doubt. RabbitMQ closes
/// a channel that settles a delivery twice, so none of them is settled again.
#[derive(Debug, Default)]
pub(super) struct PendingFrames {
    writes: BTreeMap<u64, FrameWrite>,
}

impl PendingFrames {
    /// Adds frames. Also drops the frames of cancelled calls that are written by
    /// now.
    pub(super) fn insert(&mut self, frames: &[SettlementFrame]) {
        self.writes
            .retain(|_, write| !matches!(write.clone().now_or_never(), Some(Ok(()))));
        for frame in frames {
            let writes = frame.tags.iter().map(|tag| (*tag, frame.write.clone()));
            self.writes.extend(writes);
        }
    }

    /// Returns the writing of the frame that settles this delivery.
    pub(super) fn get(&self, tag: u64) -> Option<FrameWrite> {
        self.writes.get(&tag).cloned()
    }

    /// Removes the deliveries of a written frame.
    pub(super) fn remove(&mut self, tags: &[u64]) {
        for tag in tags {
            self.writes.remove(tag);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::sync::oneshot;

    use super::*;

    /// A frame that is written, or fails, when the sender says so.
    fn frame(tags: &[u64]) -> (oneshot::Sender<lapin::Result<()>>, SettlementFrame) {
        let (written, write) = oneshot::channel();
        let write = async { write.await.expect("the test sends the outcome") };
        (written, SettlementFrame::queue(tags.to_vec(), write))
    }

    #[test]
    fn frame_of_cancelled_call_is_dropped_only_after_it_is_written() {
        let mut pending = PendingFrames::default();
        let (written, first) = frame(&[1, 2]);
        let (failed, second) = frame(&[3]);
        pending.insert(&[first, second]);
        pending.insert(&[]);
        assert!(pending.get(1).is_some() && pending.get(3).is_some());

        written.send(Ok(())).unwrap();
        let error = io::Error::from(io::ErrorKind::BrokenPipe);
        failed.send(Err(error.into())).unwrap();
        pending.insert(&[]);

        assert!(pending.get(1).is_none() && pending.get(2).is_none());
        let failed = pending.get(3).expect("its settlement is in doubt");
        assert!(failed.now_or_never().expect("it has ended").is_err());
    }
}
