//! A job under test in another process, which has it in the sandbox: JSON lines over that process's standard input and
//! output. Another process, since a test that linked the sandbox would compile a compiler.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidemill_core::error::{Error, ErrorKind, Result};
use tidemill_core::plan::Plan;
use tidemill_core::user::UserCodeFactory;

use super::Ask;
use super::here::Here;

/// The variable that names the component under test.
pub const COMPONENT: &str = "TIDEMILL_TEST_COMPONENT";
/// The variable that names the command that serves it: it is given the words `test-server COMPONENT`.
pub const SERVER: &str = "TIDEMILL_TEST_SERVER";

/// The first line to a server.
#[derive(Serialize, Deserialize)]
struct Start {
    params: BTreeMap<String, String>,
    letters: bool,
}

/// The answer to each line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Rows(Vec<Value>),
    /// What is wrong, with place and mend.
    Failed(String),
}

/// Where components are served, if this test runs in the sandbox.
pub(super) struct Server {
    command: String,
    component: String,
}

/// As the environment has it.
pub(super) fn server() -> Option<Server> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    Some(Server { command: variable(SERVER)?, component: variable(COMPONENT)? })
}

impl Server {
    /// Whether this is the plan of the component. Its name does not count, since tests choose theirs.
    pub(super) fn has_the_job(&self, plan: &Plan) -> Result<bool> {
        let mut process = self.spawn()?;
        let served: Plan = process.line()?;
        Ok(served.nodes == plan.nodes)
    }

    fn spawn(&self) -> Result<Process> {
        let mut command = Command::new(&self.command);
        command.args(["test-server", &self.component]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| lost(&format!("{} can't be started: {e}", self.command)))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { return Err(lost("it has no pipes")) };
        Ok(Process { child, input, output: BufReader::new(output) })
    }
}

struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(message).map_err(|e| Error::internal(e.to_string()))?;
        line.push(b'\n');
        self.input.write_all(&line).map_err(|e| lost(&e.to_string()))
    }

    fn line<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(|e| lost(&e.to_string()))?;
        serde_json::from_str(&line).map_err(|_| lost("it has ended; its own words stand above"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It holds nothing but the job under test.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A job in another process.
pub(super) struct There(Process);

impl There {
    pub(super) fn start(params: &BTreeMap<String, String>, letters: bool) -> Result<Self> {
        let mut process = server().ok_or_else(|| lost("the environment does not name it any more"))?.spawn()?;
        let _: Plan = process.line()?;
        process.send(&Start { params: params.clone(), letters })?;
        let mut there = Self(process);
        there.reply()?;
        Ok(there)
    }

    pub(super) fn ask(&mut self, ask: &Ask<'_>) -> Result<Vec<Value>> {
        self.0.send(ask)?;
        self.reply()
    }

    fn reply(&mut self) -> Result<Vec<Value>> {
        match self.0.line()? {
            Reply::Rows(rows) => Ok(rows),
            Reply::Failed(why) => Err(Error::new(ErrorKind::UserCode, why)),
        }
    }
}

fn lost(why: &str) -> Error {
    Error::invalid(format!("the process that has the job in the sandbox is not there: {why}"))
}

/// Serves one job under test: writes its plan, then answers line by line until the input ends. `code` makes what runs the
/// job's code, of the parameters that the test gives.
pub fn serve(
    plan: Plan,
    code: impl FnOnce(Vec<(String, String)>) -> Arc<dyn UserCodeFactory>,
    input: impl BufRead,
    mut output: impl Write,
) -> Result<()> {
    let failed = |e: std::io::Error| Error::invalid(format!("the test does not listen any more: {e}"));
    let mut write = |message: Vec<u8>| {
        output.write_all(&message).and_then(|()| output.write_all(b"\n")).and_then(|()| output.flush()).map_err(failed)
    };
    let json = |e: serde_json::Error| Error::invalid(format!("the test and this command do not speak alike: {e}"));
    write(serde_json::to_vec(&plan).map_err(json)?)?;
    let mut lines = input.lines();
    let Some(start) = lines.next() else { return Ok(()) };
    let start: Start = serde_json::from_str(&start.map_err(failed)?).map_err(json)?;
    let mut job = Here::new(plan, code(start.params.into_iter().collect()), start.letters);
    let made = job.as_ref().map(|_| Vec::new()).map_err(ToString::to_string);
    write(serde_json::to_vec(&reply(made)).map_err(json)?)?;
    for line in lines {
        let line = line.map_err(failed)?;
        let ask: Ask<'_> = serde_json::from_str(&line).map_err(json)?;
        let answer = match &mut job {
            Ok(job) => job.answer(ask).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        write(serde_json::to_vec(&reply(answer)).map_err(json)?)?;
    }
    Ok(())
}

fn reply(answer: std::result::Result<Vec<Value>, String>) -> Reply {
    answer.map_or_else(Reply::Failed, Reply::Rows)
}
