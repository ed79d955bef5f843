//! The state file (`worker_state_db`): revoked ids and the logical clock, kept
//! across restarts.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The content of a state file.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedState {
    /// Ids with the Unix time at which they were revoked, oldest first.
    pub(crate) revoked: Vec<(String, f64)>,
    #[serde(default)]
    pub(crate) clock: u64,
}

impl SavedState {
    /// Reads the file; the default state if it does not exist.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is not a state file.
    pub(crate) fn load(path: &Path) -> io::Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file atomically, so that a crash leaves either the old or the
    /// new content.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written.
    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(&new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env;

    #[test]
    fn saved_state_is_loaded() {
        let folder = std::env::temp_dir().join(env::uuid());
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("state.json");
        assert_eq!(SavedState::load(&path).unwrap(), SavedState::default());
        let state = SavedState {
            revoked: vec![("id-1".to_owned(), 1.5)],
            clock: 7,
        };
        state.save(&path).unwrap();
        assert_eq!(SavedState::load(&path).unwrap(), state);
        std::fs::write(&path, "no JSON").unwrap();
        assert!(SavedState::load(&path).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
