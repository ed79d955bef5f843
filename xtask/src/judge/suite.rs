//! Celery's integration suite, from its source package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use test_servers::paths;

use crate::shell::{run, say};

/// A folder with the tests.
#[derive(Debug)]
pub(super) struct Suite {
    pub(super) folder: PathBuf,
}

impl Suite {
    /// Downloads the suite of the pinned Celery, unless it is here.
    pub(super) fn find_or_download(python: &Path) -> Result<Self, String> {
        let requirements = paths::workspace().join("xtask/python/requirements.txt");
        let text = fs::read_to_string(&requirements)
            .map_err(|error| format!("cannot read {}: {error}", requirements.display()))?;
        let version = pinned(&text, "celery")
            .ok_or_else(|| format!("{} pins no celery", requirements.display()))?;
        let folder = paths::target().join(format!("judge/suite-{version}"));
        let script = scripts().join("suite.py");
        let wanted = fs::read_to_string(&script)
            .map_err(|error| format!("cannot read {}: {error}", script.display()))?;
        // What it was made by. Written last: a folder that was half filled has none.
        let stamp = folder.join("complete");
        if !fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == wanted) {
            say(&format!(
                "downloading the integration suite of Celery {version}"
            ));
            let _ = fs::remove_dir_all(&folder);
            let mut download = Command::new(python);
            run(download.arg(script).arg(version).arg(&folder))?;
            fs::write(&stamp, wanted)
                .map_err(|error| format!("cannot write {}: {error}", stamp.display()))?;
        }
        Ok(Self { folder })
    }
}

/// Where the plugin and the reference are.
pub(super) fn scripts() -> PathBuf {
    paths::workspace().join("xtask/python/judge")
}

/// The version that a requirements file names for a package.
fn pinned<'a>(requirements: &'a str, package: &str) -> Option<&'a str> {
    requirements.lines().find_map(|line| {
        let (name, version) = line.split_once("==")?;
        let end = version.find([';', ' ']).unwrap_or(version.len());
        (name == package).then_some(&version[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_version_is_found() {
        let text = "# celery==1\naio-celery==0.2\ncelery==5.7.0 ; python_version > \"3\"\n";
        assert_eq!(pinned(text, "celery"), Some("5.7.0"));
        assert_eq!(pinned(text, "kombu"), None);
    }
}
