//! The whole stack without Docker: PostgreSQL, Redis, nginx, and two replicas of every service as processes of their own, on free ports,
//! from a temporary folder, with the nginx template and the settings of `compose.yaml`. Any of them can be killed, frozen and restarted.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::server::{MANY_REGISTRATIONS, binary};
use crate::{Front, Postgres, Redis, free_port, run, workspace};

/// Replicas of each service.
pub const REPLICAS: usize = 2;
const GATEWAY: &str = "gateway";
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than any drain.
const END_TIMEOUT: Duration = Duration::from_secs(50);

/// How a stack may differ from the usual one.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether nginx lets reflection through.
    pub reflection: bool,
    /// Requests per second and address that nginx takes.
    pub rate_per_second: u32,
    /// Whether registrations have their usual limit by address.
    pub registrations_limited: bool,
    /// Flags that every service gets.
    pub flags: Vec<String>,
    /// The URL of the payment provider, if there is one.
    pub payment_provider: Option<String>,
    /// The binary that serves orders, if that is another one.
    pub orders: Option<PathBuf>,
    /// What every process finds in its environment.
    pub environment: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reflection: true,
            rate_per_second: 100_000,
            registrations_limited: false,
            flags: Vec::new(),
            payment_provider: None,
            orders: None,
            environment: Vec::new(),
        }
    }
}

/// A service or the gateway, as the binary itself lists it.
#[derive(Debug, Clone)]
pub struct Registered {
    /// Its name.
    pub name: String,
    /// The services that it calls.
    pub calls: Vec<String>,
    /// Its roles on PostgreSQL: the owner of the database, and its own. The gateway has none.
    pub roles: Vec<String>,
}

impl Registered {
    /// Every service of the binary, and the gateway.
    pub fn all() -> Result<Vec<Self>> {
        let listed: serde_json::Value = serde_json::from_str(&run(Command::new(binary()?).arg("services"))?)?;
        let texts = |value: &serde_json::Value| value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect();
        let one = |listed: &serde_json::Value| {
            let name = listed["name"].as_str().context("a name")?.to_owned();
            Ok(Self { name, calls: texts(&listed["calls"]), roles: texts(&listed["roles"]) })
        };
        let services = listed["services"].as_array().context("a list of services")?;
        services.iter().chain([&listed["gateway"]]).map(one).collect()
    }
}

/// Runs until it is dropped.
pub struct Stack {
    folder: tempfile::TempDir,
    /// The databases' server.
    pub postgres: Postgres,
    /// The bus.
    pub redis: Mutex<Redis>,
    services: Vec<Registered>,
    /// Servers that the services were moved to.
    moved_to: Mutex<Vec<Postgres>>,
    processes: Mutex<BTreeMap<String, Process>>,
    nginx: Mutex<Option<Child>>,
    port: u16,
    options: Options,
}

/// One replica of a service: where it listens, and its process while it has one.
struct Process {
    service: String,
    port: u16,
    ops: u16,
    child: Option<Child>,
}

impl Stack {
    /// Starts everything and waits until all of it is ready.
    pub fn start(options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("lastro-stack-").tempdir()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let services = Registered::all()?;
        let replica = |service: &str, number: usize| {
            let process = Process { service: service.to_owned(), port: free_port(), ops: free_port(), child: None };
            (format!("{service}-{number}"), process)
        };
        let processes = services.iter().flat_map(|service| (1..=REPLICAS).map(|number| replica(&service.name, number))).collect();
        let stack = Self {
            folder,
            postgres: Postgres::start()?,
            redis: Mutex::new(Redis::start()?),
            services,
            moved_to: Mutex::default(),
            processes: Mutex::new(processes),
            nginx: Mutex::new(None),
            port: free_port(),
            options,
        };
        stack.make_secrets()?;
        // Services start before what they depend on: the tables come last.
        for name in stack.names() {
            stack.spawn(&name)?;
        }
        stack.migrate()?;
        stack.start_nginx()?;
        stack.until_ready()?;
        Ok(stack)
    }

    /// Where it is reached: through nginx.
    pub fn front(&self) -> Front {
        let address = format!("https://localhost:{}", self.port);
        Front {
            rest: address.clone(),
            grpc: address,
            ops: self.ops("gateway-1"),
            authority: Some(self.path("certs/ca.pem")),
            admin_file: self.path("admin.json"),
            identity: None,
        }
    }

    /// Past nginx: REST at the first gateway, gRPC at the first replica of transactions, as the edge.
    pub fn direct(&self) -> Front {
        let port = |name: &str| self.lock()[name].port;
        Front {
            rest: format!("https://gateway:{}", port("gateway-1")),
            grpc: format!("https://127.0.0.1:{}", port("transactions-1")),
            identity: Some((self.path("certs/edge.pem"), self.path("certs/edge.key"))),
            ..self.front()
        }
    }

    /// Every replica's name: `customers-1`, …
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// `host:port` of a replica's operations.
    pub fn ops(&self, name: &str) -> String {
        format!("127.0.0.1:{}", self.lock()[name].ops)
    }

    /// `host:port` of a replica itself.
    pub fn address(&self, name: &str) -> String {
        format!("127.0.0.1:{}", self.lock()[name].port)
    }

    /// A file of the stack's: `certs/edge.pem`, …
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a process wrote to standard error, or nginx to its access log.
    pub fn log(&self, name: &str) -> Result<String> {
        Ok(fs::read_to_string(self.path(&format!("{name}.log")))?)
    }

    /// Ends a replica at once, as a crash does.
    pub fn kill(&self, name: &str) -> Result<()> {
        let child = self.lock().get_mut(name).and_then(|process| process.child.take());
        let mut child = child.with_context(|| format!("{name} does not run"))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Starts a replica that was ended.
    pub fn spawn(&self, name: &str) -> Result<()> {
        let mut command = self.command(name)?;
        let log = OpenOptions::new().create(true).append(true).open(self.path(&format!("{name}.log")))?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        if let Some(process) = self.lock().get_mut(name) {
            process.child = Some(child);
        }
        Ok(())
    }

    /// The process id of each replica that runs.
    pub fn pids(&self) -> Vec<(String, u32)> {
        let pid = |(name, process): (&String, &Process)| Some((name.clone(), process.child.as_ref()?.id()));
        self.lock().iter().filter_map(pid).collect()
    }

    /// Starts again what was killed, or has ended by itself; which.
    pub fn revive(&self) -> Result<Vec<String>> {
        let ended = |process: &mut Process| process.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))));
        let dead: Vec<String> = self.lock().iter_mut().filter_map(|(name, process)| ended(process).then(|| name.clone())).collect();
        for name in &dead {
            self.spawn(name)?;
        }
        Ok(dead)
    }

    /// Sends SIGSTOP, SIGCONT or any other signal.
    pub fn signal(&self, name: &str, signal: &str) -> Result<()> {
        let pid = self.lock()[name].child.as_ref().map(Child::id).with_context(|| format!("{name} does not run"))?;
        run(Command::new("kill").args([format!("-{signal}"), pid.to_string()])).map(|_| ())
    }

    /// Asks a replica to end, waits until it has, and starts it again; done when it is ready.
    pub fn restart(&self, name: &str) -> Result<()> {
        self.signal(name, "TERM")?;
        let since = Instant::now();
        loop {
            let ended =
                self.lock().get_mut(name).and_then(|process| process.child.as_mut()).is_none_or(|child| matches!(child.try_wait(), Ok(Some(_))));
            if ended {
                break;
            }
            ensure!(since.elapsed() < END_TIMEOUT, "{name} does not end after SIGTERM");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.spawn(name)?;
        self.until_one_is_ready(name)
    }

    /// Waits until every replica that runs is ready, and nginx answers.
    pub fn until_ready(&self) -> Result<()> {
        let running: Vec<String> = self.lock().iter().filter(|(_, process)| process.child.is_some()).map(|(name, _)| name.clone()).collect();
        running.iter().try_for_each(|name| self.until_one_is_ready(name))?;
        let since = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            ensure!(since.elapsed() < START_TIMEOUT, "nginx does not listen: {}", self.log("nginx-error").unwrap_or_default());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Waits until a replica is ready, by the health check that its container has.
    pub fn until_one_is_ready(&self, name: &str) -> Result<()> {
        let (since, ops, binary) = (Instant::now(), self.ops(name), binary()?);
        loop {
            let asked = Command::new(&binary).args(["health", "--ops", &ops]).output()?;
            if asked.status.success() {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&asked.stderr).into_owned();
            ensure!(since.elapsed() < START_TIMEOUT, "{name} does not become ready: {said}\n{}", self.log(name)?);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Tells nginx to read its configuration again.
    pub fn reload_nginx(&self) -> Result<()> {
        let pid = self.nginx.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Child::id).context("nginx does not run")?;
        run(Command::new("kill").args(["-HUP", &pid.to_string()])).map(|_| ())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_secrets(&self) -> Result<()> {
        run(Command::new(binary()?).arg("certs").arg(self.path("certs")))?;
        let secret = || uuid::Uuid::new_v4().simple().to_string();
        fs::create_dir(self.path("roles"))?;
        fs::create_dir(self.path("data"))?;
        let place = self.postgres.url().rsplit('@').next().unwrap_or_default().to_owned();
        for service in self.services.iter().filter(|service| service.name != GATEWAY) {
            for role in &service.roles {
                fs::write(self.path("roles").join(role), secret())?;
            }
            let role = format!("lastro_{}", service.name);
            let password = fs::read_to_string(self.path("roles").join(&role))?;
            fs::write(self.path(&format!("{}.url", service.name)), format!("postgres://{role}:{password}@{place}\n"))?;
        }
        let redis = self.redis.lock().unwrap_or_else(PoisonError::into_inner).url();
        fs::write(self.path("redis.url"), redis)?;
        let admin = serde_json::json!({ "email": "admin@lastro.local", "password": secret() });
        Ok(fs::write(self.path("admin.json"), admin.to_string())?)
    }

    /// Makes the services use another server of databases from their next start, with the same roles; it lives as long as the stack.
    pub fn move_to(&self, postgres: Postgres) -> Result<()> {
        for service in self.services.iter().filter(|service| service.name != GATEWAY) {
            let path = self.path(&format!("{}.url", service.name));
            let url = fs::read_to_string(&path)?;
            let (role, _) = url.rsplit_once('@').context("a URL with a role")?;
            fs::write(&path, format!("{role}@127.0.0.1:{}\n", postgres.port))?;
        }
        self.moved_to.lock().unwrap_or_else(PoisonError::into_inner).push(postgres);
        Ok(())
    }

    /// What the one-shot container of compose does.
    pub fn migrate(&self) -> Result<()> {
        let mut command = Command::new(binary()?);
        command.arg("migrate").args(["--database-url", &self.postgres.url()]);
        command.arg("--role-passwords").arg(self.path("roles")).arg("--admin-file").arg(self.path("admin.json"));
        let said = run(&mut command)?;
        ensure!(said.is_empty(), "it prints nothing, and no password above all: {said}");
        Ok(())
    }

    fn command(&self, name: &str) -> Result<Command> {
        let processes = self.lock();
        let process = processes.get(name).with_context(|| format!("no {name}"))?;
        let places = |service: &str| {
            let ports = processes.values().filter(|process| process.service == service).map(|process| format!("127.0.0.1:{}", process.port));
            ports.collect::<Vec<_>>().join(",")
        };
        let other = self.options.orders.clone().filter(|_| process.service == "orders");
        let mut command = Command::new(other.map_or_else(binary, Ok)?);
        command.envs(self.options.environment.iter().cloned());
        if !self.options.registrations_limited {
            command.envs(MANY_REGISTRATIONS);
        }
        if let Some(url) = &self.options.payment_provider {
            command.env("LASTRO_PAYMENT_PROVIDER", url);
        }
        let service = self.services.iter().find(|service| service.name == process.service).context("a service of the list")?;
        let listens = if service.name == GATEWAY { "--rest" } else { "--grpc" };
        command.arg(&process.service).args([listens, &format!("127.0.0.1:{}", process.port), "--ops", &format!("127.0.0.1:{}", process.ops)]);
        for (flag, file) in [("--tls-cert", format!("{}.pem", process.service)), ("--tls-key", format!("{}.key", process.service))] {
            command.arg(flag).arg(self.path("certs").join(file));
        }
        command.arg("--tls-ca").arg(self.path("certs/ca.pem")).arg("--tls-policy").arg(self.path("certs/policy.json"));
        command.arg("--data").arg(self.path("data"));
        if service.name != GATEWAY {
            command.arg("--database-url-file").arg(self.path(&format!("{}.url", process.service)));
            command.arg("--redis-url-file").arg(self.path("redis.url")).args(["--reflection", "true"]);
        }
        for called in &service.calls {
            command.arg(format!("--{called}")).arg(places(called));
        }
        command.args(&self.options.flags);
        Ok(command)
    }

    fn start_nginx(&self) -> Result<()> {
        fs::write(self.path("lastro.conf"), self.nginx_template()?)?;
        let folder = self.folder.path().display();
        let main = format!(
            "daemon off; user root; worker_processes 2; pid {folder}/nginx.pid; error_log {folder}/nginx-error.log warn;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; \
             scgi_temp_path {folder}/t5; include {folder}/lastro.conf; }}\n"
        );
        let main = if is_root()? { main } else { main.replace("user root;", "") };
        fs::write(self.path("nginx.conf"), main)?;
        let mut command = Command::new(nginx()?);
        command.arg("-p").arg(self.folder.path()).arg("-c").arg(self.path("nginx.conf")).arg("-e").arg(self.path("nginx-error.log"));
        let said = File::create(self.path("nginx-said.log"))?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn().context("nginx is not installed; run make deps")?;
        *self.nginx.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    /// As the official image's start script fills it in.
    fn nginx_template(&self) -> Result<String> {
        let template = fs::read_to_string(workspace().join("nginx/lastro.conf.template"))?;
        let servers = |service: &str| {
            let processes = self.lock();
            let ports = processes.values().filter(|process| process.service == service).map(|process| process.port);
            let server = |port| format!("server 127.0.0.1:{port} max_fails=2 fail_timeout=2s; server 127.0.0.1:{port} max_fails=0 backup;");
            ports.map(server).collect::<Vec<_>>().join(" ")
        };
        let mut values = vec![
            ("LISTEN".to_owned(), format!("127.0.0.1:{}", self.port)),
            ("CERTS".to_owned(), self.path("certs").display().to_string()),
            ("ACCESS_LOG".to_owned(), self.path("nginx.log").display().to_string()),
            ("REFLECTION".to_owned(), if self.options.reflection { "on" } else { "off" }.to_owned()),
            ("RATE_PER_SECOND".to_owned(), self.options.rate_per_second.to_string()),
            ("BURST".to_owned(), self.options.rate_per_second.to_string()),
            ("CONNECTIONS".to_owned(), "512".to_owned()),
        ];
        values.extend(self.services.iter().map(|service| (service.name.to_uppercase(), servers(&service.name))));
        let filled = values.iter().fold(template, |text, (name, value)| text.replace(&format!("${{LASTRO_NGINX_{name}}}"), value));
        let unfilled = filled.lines().find(|line| line.contains("${LASTRO") && !line.starts_with('#'));
        ensure!(unfilled.is_none(), "the template wants something that nobody gives: {unfilled:?}");
        Ok(filled)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Some(mut nginx) = self.nginx.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // SIGTERM, so that the workers end as well.
            let _ = run(Command::new("kill").args(["-TERM", &nginx.id().to_string()]));
            let _ = nginx.wait();
        }
        for process in self.lock().values_mut() {
            if let Some(mut child) = process.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn is_root() -> Result<bool> {
    Ok(run(Command::new("id").arg("-u"))?.trim() == "0")
}

/// Distributions put it where only root looks.
fn nginx() -> Result<PathBuf> {
    let known = ["/usr/sbin/nginx", "/usr/local/sbin/nginx"].into_iter().map(Path::new).find(|path| path.exists());
    Ok(known.map_or_else(|| PathBuf::from("nginx"), Path::to_owned))
}
