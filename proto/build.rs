//! Generates everything that follows from the contracts: messages, clients, servers, JSON, validation, REST routes, OpenAPI,
//! the method table and the sources that `lastro proto` writes. Pure Rust: no `protoc` on the machine.
#![allow(clippy::disallowed_methods, reason = "a build script is told everything by its environment")]

#[path = "build/openapi.rs"]
mod openapi;
#[path = "build/rest_methods.rs"]
mod rest_methods;
#[path = "build/words.rs"]
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, MethodDescriptor};
use protox::file::{ChainFileResolver, GoogleFileResolver, IncludeFileResolver};
use rest_methods::Rest;

/// Our files; what they import is found.
const ROOT: &str = "lastro";
/// Where the interface protos of others ship: package, folder inside it. Taken from the packages, never copied into the tree.
const INTERFACES: [(&str, &str); 2] = [("rest_over_grpc", "tests/proto"), ("prost-protovalidate-types", "proto")];
/// The messages of errors, for whoever generates a client: no contract imports them. Package, file in it, and its name among the protos.
const ERRORS: [(&str, &str, &str); 2] = [
    ("tonic-types", "proto/status.proto", "google/rpc/status.proto"),
    ("tonic-types", "proto/error_details.proto", "google/rpc/error_details.proto"),
];
/// Our own `google.protobuf.Timestamp`.
const TIMESTAMP: &str = "crate::time::Timestamp";

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed={ROOT}");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);

    let mut resolver = ChainFileResolver::new();
    resolver.add(IncludeFileResolver::new(".".into()));
    for folder in interface_folders()? {
        resolver.add(IncludeFileResolver::new(folder));
    }
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(true);
    for file in proto_files(Path::new(ROOT))? {
        compiler.open_file(&file)?;
    }

    let descriptors = compiler.encode_file_descriptor_set();
    let pool = DescriptorPool::decode(descriptors.as_slice())?;
    check_languages(&pool)?;
    fs::write(out.join("descriptors.bin"), &descriptors)?;
    write_reflection_descriptors(&compiler.file_descriptor_set(), &out)?;
    write_sources(&pool, &out)?;

    tonic_prost_build::configure()
        .codec_path("lastro_mesh::codec::ValidatingCodec")
        .compile_well_known_types(true)
        .extern_path(".google.protobuf.Timestamp", TIMESTAMP)
        .extern_path(".google.protobuf", "::pbjson_types")
        .btree_map(".")
        .build_transport(false)
        .compile_fds(compiler.file_descriptor_set())?;
    pbjson_build::Builder::new()
        .register_descriptors(&descriptors)?
        .extern_path(".google.protobuf.Timestamp", TIMESTAMP)
        .extern_path(".google.protobuf", "::pbjson_types")
        .btree_map(["."])
        .emit_fields()
        .build(&[".lastro"])?;
    prost_protovalidate_build::Builder::new()
        .file_descriptor_set_bytes(descriptors.clone())
        .extern_path(".google.protobuf.Timestamp", TIMESTAMP)
        .extern_path(".google.protobuf", "::pbjson_types")
        .fail_on_runtime_only(true)
        .compile()?;
    write_checks(&pool, &out)?;
    rest_methods::write(&pool, &out)?;
    openapi::write(&pool, &out)?;
    write_tree(&pool, &out)?;
    write_permissions(&pool, &out)?;
    write_methods(&pool, &out)
}

/// The folders of the packages that ship the interface protos.
fn interface_folders() -> Result<Vec<PathBuf>> {
    let packages = Packages::ask()?;
    INTERFACES.iter().map(|(package, folder)| packages.path(package, folder)).collect()
}

/// The packages that this one is built with, as cargo lists them.
struct Packages(serde_json::Value);

impl Packages {
    fn ask() -> Result<Self> {
        let (cargo, host) = (std::env::var("CARGO")?, std::env::var("HOST")?);
        // Offline first: what is needed is usually there, since the packages are built before this one.
        let ask = |network: &[&str]| {
            let arguments = ["metadata", "--format-version", "1", "--locked", "--filter-platform", &host];
            Command::new(&cargo).args(arguments).args(network).output()
        };
        let mut output = ask(&["--offline"])?;
        if !output.status.success() {
            output = ask(&[])?;
        }
        ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Self(serde_json::from_slice(&output.stdout)?))
    }

    /// A path within a package.
    fn path(&self, package: &str, within: &str) -> Result<PathBuf> {
        let packages = self.0["packages"].as_array().context("packages in cargo metadata")?;
        let found = packages.iter().find(|candidate| candidate["name"] == package);
        let manifest = found.and_then(|found| found["manifest_path"].as_str());
        Ok(Path::new(manifest.with_context(|| format!("the package {package} is not among the dependencies"))?).with_file_name(within))
    }
}

/// What generators of other languages need to know of each file, by one rule: `lastro.customers.v1` is `lastro.dev/go/customers/v1` and
/// `dev.lastro.customers.v1`.
fn check_languages(pool: &DescriptorPool) -> Result<()> {
    for file in pool.files().filter(|file| file.name().starts_with(ROOT)) {
        let package = file.package_name();
        let within = package.strip_prefix("lastro.").context("a package of lastro")?;
        let expected = [
            ("go_package", format!("lastro.dev/go/{};{}", within.replace('.', "/"), within.replace('.', ""))),
            ("java_package", format!("dev.{package}")),
        ];
        let options = file.file_descriptor_proto().options.clone().unwrap_or_default();
        let said = [options.go_package().to_owned(), options.java_package().to_owned()];
        for ((option, expected), said) in expected.iter().zip(said) {
            ensure!(said == *expected, "{}: write `option {option} = \"{expected}\";`", file.name());
        }
        ensure!(options.java_multiple_files(), "{}: write `option java_multiple_files = true;`", file.name());
    }
    Ok(())
}

fn proto_files(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(proto_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.insert(path);
        }
    }
    Ok(files)
}

/// What reflection serves: the public surface, its imports, and nothing internal.
fn write_reflection_descriptors(set: &prost_types::FileDescriptorSet, out: &Path) -> Result<()> {
    let mut set = set.clone();
    set.file.retain(|file| !file.package().starts_with("lastro.internal."));
    fs::write(out.join("public.bin"), set.encode_to_vec())?;
    Ok(())
}

/// The text of every public file and of what it imports, as a table of (name, text).
fn write_sources(pool: &DescriptorPool, out: &Path) -> Result<()> {
    let folders = interface_folders()?;
    let mut table = String::from("&[\n");
    for file in pool.files() {
        let name = file.name();
        if file.package_name().starts_with("lastro.internal.") {
            continue;
        }
        let on_disk = std::iter::once(PathBuf::from(".")).chain(folders.iter().cloned()).map(|f| f.join(name)).find(|p| p.exists());
        // `google/protobuf/*` is no file of any package: every protobuf compiler carries its own.
        let Some(path) = on_disk else { continue };
        let text = fs::read_to_string(path)?;
        writeln!(table, "({name:?}, {text:?}),")?;
    }
    let packages = Packages::ask()?;
    for (package, file, name) in ERRORS {
        let text = fs::read_to_string(packages.path(package, file)?)?;
        writeln!(table, "({name:?}, {text:?}),")?;
    }
    table.push(']');
    fs::write(out.join("sources.rs"), table)?;
    Ok(())
}

/// `Checked` for every message: the generated validation where there are rules, nothing where there are none.
fn write_checks(pool: &DescriptorPool, out: &Path) -> Result<()> {
    let requests: BTreeSet<String> =
        pool.services().flat_map(|service| service.methods().map(|method| method.input().full_name().to_owned()).collect::<Vec<_>>()).collect();
    let inputs = openapi::inputs(pool);
    let (mut code, mut table) = (String::new(), String::from("&[\n"));
    for message in pool.all_messages().filter(|message| message.full_name().starts_with("lastro.") && !message.is_map_entry()) {
        let path = rust_path(&message);
        let is_request = requests.contains(message.full_name());
        let words = if is_request { words::of(&message)? } else { Vec::new() };
        // A message with rules of its own must have a generated validation: else this does not compile. One without may have one, for what is within it.
        let validated = if has_rules(&message) {
            "::prost_protovalidate::Validate::validate(self)"
        } else {
            "{ use ::lastro_mesh::codec::NoRules as _; ::lastro_mesh::codec::MaybeRules(self).validate() }"
        };
        if !words.is_empty() {
            writeln!(table, "({:?}, &{words:?}),", message.full_name())?;
        }
        writeln!(
            code,
            "impl ::lastro_mesh::codec::Checked for {path} {{\n    const IS_REQUEST: bool = {is_request};\n    \
             fn violations(&self) -> Vec<::lastro_mesh::codec::Violation> {{ \
             let mut broken = ::lastro_mesh::codec::violations({validated}, &{words:?}); self.nuls(&mut broken); broken }}\n    \
             fn nuls(&self, broken: &mut Vec<::lastro_mesh::codec::Violation>) {{ let _ = &broken; {} }}\n}}",
            if inputs.contains(message.full_name()) { nuls(&message)? } else { String::new() }
        )?;
    }
    fs::write(out.join("checks.rs"), code)?;
    table.push(']');
    fs::write(out.join("words.rs"), table)?;
    Ok(())
}

/// Looks for NUL in every text of a message that comes from a client.
fn nuls(message: &MessageDescriptor) -> Result<String> {
    let mut code = String::new();
    for field in message.fields().filter(|field| !is_judged_by_the_service(field)) {
        let name = field.name();
        let place = if name == "type" { "r#type" } else { name };
        let look = match field.kind() {
            Kind::String => format!("::lastro_mesh::codec::no_nul({name:?}, text, broken)"),
            Kind::Message(of) if of.full_name().starts_with("lastro.") && !of.is_map_entry() => {
                format!("::lastro_mesh::codec::no_nul_within({name:?}, text, broken)")
            }
            Kind::Message(of) if of.is_map_entry() => {
                for side in [of.map_entry_key_field(), of.map_entry_value_field()] {
                    ensure!(side.kind() == Kind::String, "{}: only maps of texts are looked through", field.full_name());
                }
                writeln!(
                    code,
                    "for text in self.{place}.keys().chain(self.{place}.values()) {{ ::lastro_mesh::codec::no_nul({name:?}, text, broken) }}"
                )?;
                continue;
            }
            _ => continue,
        };
        let optional = field.supports_presence();
        ensure!(field.containing_oneof().is_none_or(|oneof| oneof.is_synthetic()), "{}: a oneof is not looked through", field.full_name());
        if field.is_list() || optional {
            writeln!(code, "for text in self.{place}.iter() {{ {look} }}")?;
        } else {
            writeln!(code, "{{ let text = &self.{place}; {look} }}")?;
        }
    }
    Ok(code)
}

fn has_rules(message: &MessageDescriptor) -> bool {
    message.fields().any(|field| rules_of(&field).is_some() && !is_judged_by_the_service(&field))
}

fn rules_of(field: &prost_reflect::FieldDescriptor) -> Option<DynamicMessage> {
    let options = field.options();
    let mut all = options.extensions();
    all.find(|(extension, _)| extension.full_name() == "buf.validate.field").and_then(|(_, value)| value.as_message().cloned())
}

/// A field whose rules, and those of the messages in it, are in the contract for its readers, and are judged by the service.
fn is_judged_by_the_service(field: &prost_reflect::FieldDescriptor) -> bool {
    // IGNORE_ALWAYS is 3.
    rules_of(field).and_then(|rules| rules.get_field_by_name("ignore").and_then(|ignore| ignore.as_enum_number())) == Some(3)
}

/// `lastro.customers.v1.User` is `lastro::customers::v1::User` from the root of the generated tree.
fn rust_path(message: &MessageDescriptor) -> String {
    let mut path: Vec<String> = message.package_name().split('.').map(rust_module).collect();
    path.push(message.name().to_owned());
    path.join("::")
}

fn rust_module(segment: &str) -> String {
    if segment == "type" { "r#type".to_owned() } else { segment.to_owned() }
}

/// A module of the generated code: the files that it includes, and the modules within it by name.
#[derive(Default)]
struct Module {
    includes: Vec<String>,
    within: BTreeMap<String, Module>,
}

impl Module {
    fn at(&mut self, path: &[String]) -> &mut Self {
        path.iter().fold(self, |module, name| module.within.entry(name.clone()).or_default())
    }

    fn write(&self, code: &mut String) -> Result<()> {
        for file in &self.includes {
            writeln!(code, "include!(concat!(env!(\"OUT_DIR\"), \"/{file}\"));")?;
        }
        for (name, module) in &self.within {
            writeln!(code, "pub mod {name} {{")?;
            module.write(code)?;
            code.push_str("}\n");
        }
        Ok(())
    }
}

/// The module tree of the generated code, as the packages are named: a new package needs no line elsewhere.
fn write_tree(pool: &DescriptorPool, out: &Path) -> Result<()> {
    let packages: BTreeSet<String> = pool.files().map(|file| file.package_name().to_owned()).collect();
    let mut tree = Module::default();
    for package in &packages {
        // The validation names messages of google.api, which the annotations are made of; of the others' packages nothing else is used.
        let endings: &[&str] = match package.as_str() {
            "google.api" => &[".rs"],
            ours if ours.starts_with("lastro.") => &[".rs", ".serde.rs"],
            _ => continue,
        };
        let path: Vec<String> = package.split('.').map(rust_module).collect();
        let files = endings.iter().map(|ending| format!("{}{ending}", path.join(".")));
        tree.at(&path).includes = files.filter(|file| out.join(file).exists()).collect();
    }
    let mut code = String::new();
    tree.write(&mut code)?;
    fs::write(out.join("tree.rs"), code)?;
    Ok(())
}

/// The method table: what `Method` in `src/methods.rs` says of every RPC.
fn write_methods(pool: &DescriptorPool, out: &Path) -> Result<()> {
    let mut table = String::from("&[\n");
    for service in pool.services() {
        for method in service.methods() {
            let (http_method, http_path, body) = rest_methods::http_rule(&method).unwrap_or_default();
            let rest = Rest::of(&method);
            ensure!(body.is_empty() || body == "*", "{}: only body: \"*\" is read, or no body at all", method.full_name());
            let option = extension(&method, "lastro.type.v1.access").context("an access annotation")?;
            let option = |name: &str| option.get_field_by_name(name).map(std::borrow::Cow::into_owned);
            let hashes = option("hashes_password").and_then(|value| value.as_bool()).unwrap_or_default();
            let request_kb_max = option("request_kb_max").and_then(|value| value.as_i32()).filter(|kb| *kb > 0).unwrap_or(64);
            let rest_kb_max = option("rest_kb_max").and_then(|value| value.as_i32()).filter(|kb| *kb > 0).unwrap_or(request_kb_max);
            // NO_SIDE_EFFECTS is 1.
            let reads = method.method_descriptor_proto().options.as_ref().is_some_and(|options| options.idempotency_level == Some(1));
            let class = if hashes {
                "Login"
            } else if reads {
                "Read"
            } else {
                "Write"
            };
            let (path_fields, query) = rest_fields(&method, &http_path, &body)?;
            let access = access(&method)?;
            let csv = rest_methods::csv(&method, &rest)?;
            let shared = option("shared").and_then(|value| value.as_bool()).unwrap_or_default();
            ensure!(
                rest.key.is_empty() || method.input().get_field_by_name(&rest.key).is_some(),
                "{}: {} is to be its key, and is no field of its request",
                method.full_name(),
                rest.key
            );
            // IDEMPOTENCY_UNKNOWN is 0.
            let retry_safe =
                method.method_descriptor_proto().options.as_ref().is_some_and(|options| options.idempotency_level.unwrap_or_default() != 0);
            writeln!(
                table,
                "    Method {{ service: {:?}, name: {:?}, path: \"/{}/{}\", access: {access}, shared: {shared}, http_method: {http_method:?}, http_path: {http_path:?}, \
                 success: Success::{}, takes_idempotency_key: {}, key: {:?}, takes_wait: {}, waits_outside: {}, csv: {csv}, reasons: &{:?}, streams: {}, retry_safe: {retry_safe}, \
                 takes_body: {}, path_fields: &{path_fields:?}, query: &[{query}], input: {:?}, class: Class::{class}, \
                 request_bytes_max: {}, body_bytes_max: {} }},",
                service.full_name(),
                method.name(),
                service.full_name(),
                method.name(),
                rest.success_variant(),
                rest.takes_idempotency_key,
                rest.key,
                rest.takes_wait,
                rest.waits_outside,
                rest.reasons,
                method.is_server_streaming(),
                !body.is_empty(),
                method.input().full_name(),
                request_kb_max * 1024,
                rest_kb_max * 1024,
            )?;
        }
    }
    table.push(']');
    fs::write(out.join("methods.rs"), table)?;
    Ok(())
}

fn extension(method: &MethodDescriptor, name: &str) -> Option<DynamicMessage> {
    method.options().extensions().find(|(extension, _)| extension.full_name() == name).and_then(|(_, value)| value.as_message().cloned())
}

fn access(method: &MethodDescriptor) -> Result<String> {
    let access = extension(method, "lastro.type.v1.access").with_context(|| format!("{} has no access annotation", method.full_name()))?;
    let says = |name: &str| access.get_field_by_name(name).is_some_and(|value| value.as_bool() == Some(true));
    let permission = access.get_field_by_name("permission").and_then(|value| value.as_enum_number()).filter(|number| *number != 0);
    let is_internal = method.parent_service().package_name().starts_with("lastro.internal.");
    ensure!(
        says("service") == is_internal,
        "{}: methods of lastro.internal packages are for services alone (service: true), and no others are",
        method.full_name()
    );
    match (says("public"), says("service"), permission) {
        (true, false, None) => Ok("Access::Public".to_owned()),
        (false, true, None) => Ok("Access::Service".to_owned()),
        (false, false, Some(number)) => {
            let permissions = method.parent_pool().get_enum_by_name(PERMISSION).context("the permissions")?;
            let value = permissions.get_value(number).with_context(|| format!("{}: no such permission", method.full_name()))?;
            Ok(format!("Access::Permission({:?})", permission_name(value.name())))
        }
        _ => anyhow::bail!("{}: one of public, service and a permission", method.full_name()),
    }
}

const PERMISSION: &str = "lastro.type.v1.Permission";

/// READ_ACCOUNTS is `read:accounts`.
fn permission_name(value: &str) -> String {
    value.to_lowercase().replacen('_', ":", 1)
}

/// The names of permissions, as tokens carry them.
fn write_permissions(pool: &DescriptorPool, out: &Path) -> Result<()> {
    let permissions = pool.get_enum_by_name(PERMISSION).context("the permissions")?;
    let mut code = String::from("match self {\n");
    for value in permissions.values() {
        let words = value.name().trim_start_matches("PERMISSION_").split('_');
        let variant: String = words.map(|word| format!("{}{}", &word[..1], word[1..].to_lowercase())).collect();
        let name = if value.number() == 0 { String::new() } else { permission_name(value.name()) };
        writeln!(code, "Self::{variant} => {name:?},")?;
    }
    code.push('}');
    fs::write(out.join("permissions.rs"), code)?;
    Ok(())
}

/// Where the fields of a request come from over REST: those that stand in the path, and those that are read from the query, as Rust code.
fn rest_fields(method: &MethodDescriptor, http_path: &str, body: &str) -> Result<(Vec<String>, String)> {
    let (mut in_path, mut query) = (Vec::new(), String::new());
    for field in method.input().fields() {
        if http_path.contains(&format!("{{{}}}", field.json_name())) {
            in_path.push(field.json_name().to_owned());
        } else if !http_path.is_empty() && body.is_empty() {
            let form = match field.kind() {
                Kind::Int32 => "Number",
                Kind::Bool => "Bool",
                Kind::String | Kind::Enum(_) => "Text",
                Kind::Message(of) if of.full_name() == "google.protobuf.Timestamp" => "Text",
                _ => "",
            };
            ensure!(!form.is_empty() && !field.is_list(), "{}: such a field is not read from a query", field.full_name());
            write!(query, "Parameter {{ name: {:?}, proto_name: {:?}, form: Form::{form} }}, ", field.json_name(), field.name())?;
        }
    }
    Ok((in_path, query))
}
