//! Copies of directories, for tests of crashes.

use std::path::{Path, PathBuf};
use std::{fs, io};

use tempfile::TempDir;

/// A directory as a crash at this moment would leave it.
pub(crate) fn image(of: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) -> io::Result<()> {
        fs::create_dir_all(to)?;
        for file in fs::read_dir(from)? {
            let file = file?;
            let to: PathBuf = to.join(file.file_name());
            if file.path().is_dir() {
                copy(&file.path(), &to)?;
            } else if file.file_name() != "LOCK" {
                fs::copy(file.path(), to)?;
            }
        }
        Ok(())
    }
    loop {
        let image = tempfile::tempdir().unwrap();
        match copy(of, image.path()) {
            Ok(()) => return image,
            // An engine has tidied up meanwhile, so this would be no image of one moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => panic!("{error}"),
        }
    }
}
