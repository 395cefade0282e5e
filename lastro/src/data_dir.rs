//! The data folder: 0700, every file in it 0600 since it holds keys, and locked, so that two processes never share its databases.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// A data folder that is ours until this is dropped.
pub struct DataDir {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl DataDir {
    /// Makes the folder where it is missing, and locks it.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| format!("the data folder {shown} cannot be made"))?;
        fs::set_permissions(path, Permissions::from_mode(0o700)).with_context(|| format!("the data folder {shown} cannot be closed to others"))?;
        let lock = private(OpenOptions::new().create(true).truncate(false)).open(path.join("lock"));
        let lock = lock.with_context(|| format!("the data folder {shown} cannot be written to"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("the data folder {shown} is in use by another lastro; stop that one, or give --data another folder")
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("the data folder {shown} cannot be locked")),
        }
        let path = path.canonicalize().with_context(|| format!("the data folder {shown} cannot be found"))?;
        Ok(Self { path, _lock: lock })
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A file in the folder that is there and closed to others, for those who would make it otherwise.
    pub fn private_file(&self, name: &str) -> Result<PathBuf> {
        let path = self.file(name);
        private(OpenOptions::new().create(true).truncate(false)).open(&path).with_context(|| format!("{} cannot be written", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(path)
    }

    /// Writes a file whole or not at all.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        write_private(&self.file(name), content)
    }
}

/// Writes a file that is closed to others, whole or not at all.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".draft");
    let write = || -> std::io::Result<()> {
        let mut file = private(OpenOptions::new().create(true).truncate(true)).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}

/// A file that is empty and closed to others, and was not there.
pub fn create_private(path: &Path) -> Result<()> {
    private(OpenOptions::new().create_new(true)).open(path).with_context(|| format!("{} cannot be made", path.display())).map(|_| ())
}

/// Locks a file, which is made where it is missing, until it is dropped. None where somebody else holds it.
pub fn lock_file(path: &Path) -> Result<Option<File>> {
    let file =
        private(OpenOptions::new().create(true).truncate(false)).open(path).with_context(|| format!("{} cannot be written", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{} cannot be locked", path.display())),
    }
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.write(true).mode(0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_private_and_has_one_user_at_a_time() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let path = parent.path().join("a/b");
        let first = DataDir::open(&path).expect("a new folder");
        first.write("secret", b"x").expect("written");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("secret")), mode(&path.join("lock"))), (0o700, 0o600, 0o600));
        assert!(DataDir::open(&path).is_err_and(|error| error.to_string().contains("in use")));
        drop(first);
        assert!(DataDir::open(&path).is_ok());
    }
}
