//! `lastro proto`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Writes every public proto file with its imports, and `descriptors.bin`, a `google.protobuf.FileDescriptorSet` of all of them. What is
/// under `google/protobuf/` comes with every protobuf compiler.
pub fn write(dir: &Path) -> Result<()> {
    let write = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        let folder = path.parent().unwrap_or(dir);
        fs::create_dir_all(folder).and_then(|()| fs::write(&path, content)).with_context(|| format!("{} cannot be written", path.display()))
    };
    for (name, text) in lastro_proto::SOURCES {
        write(name, text.as_bytes())?;
    }
    write("descriptors.bin", lastro_proto::PUBLIC_DESCRIPTORS)
}
