//! `protoc -I DIR … -o FILE FILE.proto …` by protox: writes a descriptor set with imports and source info.
use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let (mut includes, mut files, mut output) = (Vec::new(), Vec::new(), None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-I" => includes.extend(arguments.next().map(PathBuf::from)),
            "-o" => output = arguments.next(),
            flag if flag.starts_with('-') => {}
            file => files.push(relative(Path::new(file), &includes)),
        }
    }
    let mut compiler = protox::Compiler::new(includes)?;
    compiler.include_imports(true).include_source_info(true).open_files(files)?;
    std::fs::write(output.ok_or("-o FILE is missing")?, compiler.encode_file_descriptor_set())?;
    Ok(())
}

/// A file may be given with its include folder in front or without.
fn relative(file: &Path, includes: &[PathBuf]) -> PathBuf {
    let inside = includes.iter().find_map(|include| file.strip_prefix(include).ok());
    inside.unwrap_or(file).to_owned()
}
