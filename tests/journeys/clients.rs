//! Generated clients in another language, and grpcurl by reflection. Where a tool cannot be had the journey is reported as ignored, with
//! the reason, never as passed.

use std::path::{Path, PathBuf};
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
    let has = |program: &str, flag: &str| Command::new(program).arg(flag).output().is_ok_and(|output| output.status.success());
    let generator = tools().join("venv/bin/openapi-generator-cli");
    let no_generator = (!(generator.exists() && has("java", "-version")))
        .then_some("openapi-generator could not be had: it needs Java and Python's package index (see make deps)");
    let no_go = no_generator.or((!has("go", "version")).then_some("Go is not here"));
    let linter = |name: &str| tools().join("npm/node_modules/.bin").join(name);
    let no_linter = |name: &str| (!linter(name).exists()).then_some("redocly and spectral could not be had: they need npm (see make deps)");
    let buf = tools().join("bin/buf");
    let no_buf = (!buf.exists()).then_some("buf could not be had: it needs Go and its module proxy (see make deps)");
    let mut trials = vec![
        journey("clients::python", no_python, Box::new(move |world| python_journey(world, &python))),
        journey("clients::grpcurl", no_grpcurl, Box::new(move |world| grpcurl_journey(world, &grpcurl.context("grpcurl")?))),
    ];
    // The document is the same in every world, and so are the clients that are made of it.
    if kind == Kind::Embedded {
        let (for_python, for_go) = (generator.clone(), generator);
        trials.extend([
            journey("clients::openapi_python", no_generator, Box::new(move |world| openapi_python(world, &for_python))),
            journey("clients::openapi_go", no_go, Box::new(move |world| openapi_go(world, &for_go))),
            journey("clients::buf", no_buf, Box::new(move |_| buf_lint(&buf))),
            journey("clients::redocly", no_linter("redocly"), Box::new(move |world| redocly(world, &linter("redocly")))),
            journey("clients::spectral", no_linter("spectral"), Box::new(move |world| spectral(world, &linter("spectral")))),
        ]);
    }
    trials
}

/// The document, in a folder of its own.
fn document(world: &World) -> Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("openapi.json");
    let text = run(Command::new("curl").args(["--silent", "--fail"]).arg(format!("{}/openapi.json", world.server.rest)))?;
    std::fs::write(&file, text)?;
    Ok((folder, file))
}

fn generate(generator: &PathBuf, document: &Path, language: &str, into: &Path, properties: &str) -> Result<()> {
    let mut command = Command::new(generator);
    command.args(["generate", "-i"]).arg(document).args(["-g", language, "-o"]).arg(into).arg(format!("--additional-properties={properties}"));
    run(command.args(["--git-user-id", "lastro", "--git-repo-id", "client"])).map(|_| ())
}

fn openapi_python(world: &World, generator: &PathBuf) -> Result<()> {
    let (folder, document) = document(world)?;
    let client = folder.path().join("client");
    generate(generator, &document, "python", &client, "packageName=lastro_client")?;
    let mut journey = Command::new(tools().join("venv/bin/python"));
    journey.arg(workspace().join("tests/clients/openapi_client.py")).arg(&world.server.rest).arg(&world.server.admin_file);
    complete(&run(journey.env("PYTHONPATH", &client))?)
}

fn openapi_go(world: &World, generator: &PathBuf) -> Result<()> {
    let (folder, document) = document(world)?;
    generate(generator, &document, "go", &folder.path().join("client"), "packageName=lastro,withGoMod=true")?;
    let journey = folder.path().join("journey");
    std::fs::create_dir(&journey)?;
    std::fs::copy(workspace().join("tests/clients/openapi_client.go"), journey.join("main.go"))?;
    let module = "module journey\n\ngo 1.23\n\nrequire github.com/lastro/client v0.0.0\n\nreplace github.com/lastro/client => ../client\n";
    std::fs::write(journey.join("go.mod"), module)?;
    let mut go = Command::new("go");
    go.args(["run", "-mod=mod", "."]).arg(&world.server.rest).arg(&world.server.admin_file).current_dir(&journey);
    complete(&run(&mut go)?)
}

fn complete(said: &str) -> Result<()> {
    anyhow::ensure!(said.trim_end().ends_with("journey complete"), "{said}");
    Ok(())
}

/// The contracts as `lastro proto` writes them, by the rules of `proto/buf.yaml`.
fn buf_lint(buf: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    run(Command::new(binary()?).arg("proto").arg(folder.path()))?;
    std::fs::copy(workspace().join("proto/buf.yaml"), folder.path().join("buf.yaml"))?;
    run(Command::new(buf).args(["lint", "--path", "lastro"]).current_dir(folder.path())).map(|_| ())
}

/// Its recommended rules, without a warning.
fn redocly(world: &World, redocly: &Path) -> Result<()> {
    let (folder, document) = document(world)?;
    let mut lint = Command::new(redocly);
    lint.args(["lint", "--extends", "recommended", "--format", "json"]).arg(&document).current_dir(folder.path());
    let said = run(lint.env("REDOCLY_TELEMETRY", "off").env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true"))?;
    let found: serde_json::Value = serde_json::from_str(&said[said.find('{').context("JSON")?..])?;
    // The public contract has `/orders/customer/{customerId}` beside `/orders/{orderId}/saga`: a segment that is spelled out goes before one that is not.
    let is_known = |problem: &serde_json::Value| {
        let message = problem["message"].as_str().unwrap_or_default();
        problem["ruleId"] == "no-ambiguous-paths" && message.contains("`/api/v1/orders/customer/{customerId}`")
    };
    let others = found["problems"].as_array().context("problems")?.iter().filter(|problem| !is_known(problem)).count();
    anyhow::ensure!(found["totals"]["errors"] == 0 && others == 0, "{found:#}");
    Ok(())
}

/// Its rules for OpenAPI, without a warning.
fn spectral(world: &World, spectral: &Path) -> Result<()> {
    let (folder, document) = document(world)?;
    std::fs::write(folder.path().join("rules.yaml"), "extends: [\"spectral:oas\"]\n")?;
    let mut lint = Command::new(spectral);
    lint.args(["lint", "--fail-severity", "warn", "--ruleset", "rules.yaml"]).arg(&document).current_dir(folder.path());
    run(&mut lint).map(|_| ())
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
