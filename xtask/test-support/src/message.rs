//! Reading messages: [`MessageExt`].

use celery_protocol::Message;

/// Short ways to read a message.
pub trait MessageExt {
    /// Returns a text header, or an empty text if the message lacks it.
    fn text(&self, header: &str) -> String;

    /// Returns the task's id.
    fn id(&self) -> String;
}

impl MessageExt for Message {
    fn text(&self, header: &str) -> String {
        let found = self.headers.find(header).unwrap();
        found.map_or_else(String::new, |raw| raw.decode().unwrap_or_default())
    }

    fn id(&self) -> String {
        self.text("id")
    }
}
