//! Downloads Celery's integration suite from its source package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use test_servers::paths;

use crate::shell::{run, say};

/// The unpacked integration suite.
#[derive(Debug)]
pub(super) struct Suite {
    pub(super) folder: PathBuf,
}

impl Suite {
    /// Returns the suite of the pinned Celery, downloaded unless it is below `target/` already.
    pub(super) fn find_or_download(python: &Path) -> Result<Self, String> {
        let requirements = paths::workspace().join("xtask/python/requirements.txt");
        let text = fs::read_to_string(&requirements)
            .map_err(|error| format!("cannot read {}: {error}", requirements.display()))?;
        let version = pinned(&text, "celery")
            .ok_or_else(|| format!("{} pins no celery", requirements.display()))?;
        let folder = paths::target().join(format!("interop/suite-{version}"));
        let script = scripts().join("suite.py");
        let current = fs::read_to_string(&script)
            .map_err(|error| format!("cannot read {}: {error}", script.display()))?;
        // The stamp holds the script that filled the folder. It is written last, so an incomplete
        // folder has none.
        let stamp = folder.join("complete");
        if !fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == current) {
            say(&format!(
                "downloading the integration suite of Celery {version}"
            ));
            let _ = fs::remove_dir_all(&folder);
            let mut download = Command::new(python);
            run(download.arg(script).arg(version).arg(&folder))?;
            fs::write(&stamp, current)
                .map_err(|error| format!("cannot write {}: {error}", stamp.display()))?;
        }
        Ok(Self { folder })
    }
}

/// The folder of the pytest plugin and of the reference application.
pub(super) fn scripts() -> PathBuf {
    paths::workspace().join("xtask/python/interop")
}

/// Returns the version to which a requirements file pins a package.
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
    fn pinned_version_is_read_without_its_marker() {
        let text = "# celery==1\naio-celery==0.2\ncelery==5.7.0 ; python_version > \"3\"\n";
        assert_eq!(pinned(text, "celery"), Some("5.7.0"));
        assert_eq!(pinned(text, "kombu"), None);
    }
}
