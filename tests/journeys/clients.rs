//! Generated clients in another language, and grpcurl by reflection. Where a tool cannot be had the journey is reported as ignored, with
//! the reason, never as passed.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use lastro_tests::server::binary;
use lastro_tests::{run, workspace};
use libtest_mimic::Trial;

use crate::{Kind, World, failed};

pub fn trials(kind: Kind, world: impl Fn() -> Result<Arc<World>> + Clone + Send + 'static) -> Vec<Trial> {
    let python = tools().join("venv/bin/python");
    let has_grpc = Command::new(&python).args(["-c", "import grpc, grpc_tools"]).output().is_ok_and(|output| output.status.success());
    let grpcurl =
        [tools().join("bin/grpcurl"), PathBuf::from("grpcurl")].into_iter().find(|path| Command::new(path).arg("-version").output().is_ok());
    let journey = |name: &str, missing: Option<&str>, test: Box<dyn FnOnce(&World) -> Result<()> + Send>| {
        if let Some(reason) = missing {
            eprintln!("{name} is skipped: {reason}");
        }
        let world = world.clone();
        Trial::test(format!("{}::{name}", format!("{kind:?}").to_lowercase()), move || failed(world().and_then(|world| test(&world))))
            .with_ignored_flag(missing.is_some())
    };
    let no_python = (!has_grpc).then_some("Python with grpcio and grpcio-tools could not be had (see make deps)");
    let no_grpcurl = grpcurl.is_none().then_some("grpcurl could not be had: it needs Go and its module proxy (see make deps)");
    vec![
        journey("clients::python", no_python, Box::new(move |world| python_journey(world, &python))),
        journey("clients::grpcurl", no_grpcurl, Box::new(move |world| grpcurl_journey(world, &grpcurl.context("grpcurl")?))),
    ]
}

fn tools() -> PathBuf {
    let set = std::env::vars_os().find(|(key, _)| key == "LASTRO_TEST_TOOLS").map(|(_, value)| PathBuf::from(value));
    set.unwrap_or_else(|| workspace().join("target/test-tools"))
}

fn python_journey(world: &World, python: &PathBuf) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (protos, stubs) = (folder.path().join("protos"), folder.path().join("stubs"));
    std::fs::create_dir(&stubs)?;
    run(Command::new(binary()?).arg("proto").arg(&protos))?;
    let files = run(Command::new("find").args([".", "-name", "*.proto"]).current_dir(&protos))?;
    let mut generate = Command::new(python);
    generate
        .args(["-m", "grpc_tools.protoc", "-I", "."])
        .arg(format!("--python_out={}", stubs.display()))
        .arg(format!("--grpc_python_out={}", stubs.display()));
    run(generate.args(files.lines().map(|file| file.trim_start_matches("./"))).current_dir(&protos))?;
    let journey = workspace().join("tests/clients/journey.py");
    let front = &world.server;
    let said =
        run(Command::new(python).arg(journey).arg(front.grpc_address()).arg(&front.admin_file).args(&front.authority).env("PYTHONPATH", &stubs))?;
    anyhow::ensure!(said.trim_end().ends_with("journey complete"), "{said}");
    Ok(())
}

fn grpcurl_journey(world: &World, grpcurl: &PathBuf) -> Result<()> {
    let journey = workspace().join("tests/clients/journey.sh");
    let front = &world.server;
    let said =
        run(Command::new("bash").arg(journey).arg(front.grpc_address()).arg(&front.admin_file).args(&front.authority).env("GRPCURL", grpcurl))?;
    anyhow::ensure!(said.trim_end().ends_with("journey complete"), "{said}");
    Ok(())
}
