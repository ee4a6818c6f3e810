//! The store of a simulation: memory behind a network. It is slow, fails before or after it did what it was asked, does it
//! later, and at any request the process that asks may die.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::sync::{Arc, Mutex};

use tidemill_blobs::{BlobError, BlobWriter, Blobs, Listed, Memory, PutNew, Trouble};

use crate::sabotage::Sabotage;
use crate::world::{Machine, World, lock};

/// All locations.
pub struct Stores {
    world: Arc<World>,
    content: Mutex<BTreeMap<String, Memory>>,
    late: Mutex<Vec<Late>>,
}

/// A request that was answered with an error and takes effect later.
struct Late {
    at_ms: i64,
    content: Memory,
    path: String,
    bytes: Vec<u8>,
}

impl Stores {
    /// Empty ones.
    pub fn new(world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self { world: world.clone(), content: Mutex::default(), late: Mutex::default() })
    }

    /// A location, as a process sees it.
    pub fn at(self: &Arc<Self>, location: &str, machine: &Arc<Machine>) -> Arc<dyn Blobs> {
        let content = lock(&self.content).entry(location.to_owned()).or_default().clone();
        Arc::new(Remote { location: location.to_owned(), content, stores: self.clone(), machine: machine.clone() })
    }

    /// Does what is to be done late, and is due.
    pub fn settle(&self) {
        let now = self.world.now_ms();
        let mut late = lock(&self.late);
        late.retain(|Late { at_ms, content, path, bytes }| {
            let is_due = *at_ms <= now;
            if is_due {
                let answer = content.put_new(path, bytes);
                self.world.note(&format!("a late request to write {path} arrives: {answer:?}"));
            }
            !is_due
        });
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Luck {
    Works,
    /// It is refused.
    Fails,
    /// It works, and the answer is lost.
    FailsAfter,
    /// The answer is lost, and it takes effect later.
    FailsLate,
}

struct Remote {
    location: String,
    content: Memory,
    stores: Arc<Stores>,
    machine: Arc<Machine>,
}

impl Remote {
    /// What becomes of this request; an error: nothing.
    fn request(&self, what: &str, path: &str) -> Result<Luck, BlobError> {
        let (machine, world) = (&self.machine, &self.machine.world);
        if !machine.is_alive() {
            return Err(unavailable("the process is dead", false));
        }
        let slow = world.store_goes_wrong("store_slow", 4);
        machine.wait(if slow { world.dice().between(200, 5_000) } else { world.dice().between(0, 6) });
        if world.store_goes_wrong("death_at_request", 1) {
            machine.kill();
            world.note(&format!("{} dies before {what} {path}", machine.name));
            return Err(unavailable("the process is dead", false));
        }
        let luck = if world.store_goes_wrong("store_fails", 3) {
            Luck::Fails
        } else if world.store_goes_wrong("store_fails_after", 3) {
            Luck::FailsAfter
        } else if world.store_goes_wrong("store_fails_late", 2) {
            Luck::FailsLate
        } else {
            Luck::Works
        };
        if luck != Luck::Works {
            world.note(&format!("{}: {what} {path}: {luck:?}", machine.name));
        }
        match luck {
            Luck::Fails => Err(unavailable("refused", false)),
            luck => Ok(luck),
        }
    }

    /// The process may die when a request was done.
    fn done<T>(&self, luck: Luck, what: &str, path: &str, answer: T) -> Result<T, BlobError> {
        let (machine, world) = (&self.machine, &self.machine.world);
        if world.store_goes_wrong("death_after_request", 1) {
            machine.kill();
            world.note(&format!("{} dies after {what} {path}", machine.name));
            return Err(unavailable("the process is dead", true));
        }
        match luck {
            Luck::Works => Ok(answer),
            _ => Err(unavailable("the answer was lost", true)),
        }
    }
}

impl Blobs for Remote {
    fn location(&self) -> &str {
        &self.location
    }

    fn put_new(&self, path: &str, content: &[u8]) -> Result<PutNew, BlobError> {
        let luck = self.request("writing", path)?;
        if self.stores.world.sabotage == Some(Sabotage::ForgetWish) && path.contains(".wish-") {
            return self.done(luck, "writing", path, PutNew::Done);
        }
        if luck == Luck::FailsLate {
            let at_ms = self.stores.world.now_ms() + self.stores.world.dice().between(1, 5_000);
            let (path, bytes) = (path.to_owned(), content.to_vec());
            lock(&self.stores.late).push(Late { at_ms, content: self.content.clone(), path, bytes });
            return Err(unavailable("no answer", true));
        }
        let mut answer = self.content.put_new(path, content)?;
        if answer == PutNew::Exists && self.stores.world.sabotage == Some(Sabotage::NoFence) && path.starts_with("log/")
        {
            self.content.damage(path, Some(content.to_vec()));
            answer = PutNew::Done;
        }
        self.machine.world.note(&format!("{} writes {path}: {answer:?}", self.machine.name));
        self.done(luck, "writing", path, answer)
    }

    fn create(&self, path: &str) -> Result<Box<dyn BlobWriter>, BlobError> {
        let writer = Writer {
            remote: Self {
                location: self.location.clone(),
                content: self.content.clone(),
                stores: self.stores.clone(),
                machine: self.machine.clone(),
            },
            path: path.to_owned(),
            content: Vec::new(),
        };
        Ok(Box::new(writer))
    }

    fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send>>, BlobError> {
        let luck = self.request("reading", path)?;
        let found = self.content.open(path)?;
        self.done(luck, "reading", path, found)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, BlobError> {
        let luck = self.request("listing", folder)?;
        let found = self.content.list(folder)?;
        self.done(luck, "listing", folder, found)
    }

    fn delete(&self, path: &str) -> Result<(), BlobError> {
        let luck = self.request("deleting", path)?;
        if luck != Luck::FailsLate {
            self.content.delete(path)?;
        }
        self.done(luck, "deleting", path, ())
    }
}

/// A blob that is written at once when it is finished.
struct Writer {
    remote: Remote,
    path: String,
    content: Vec<u8>,
}

impl Write for Writer {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.content.write(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for Writer {
    fn finish(self: Box<Self>) -> Result<(), BlobError> {
        let Self { remote, path, content } = *self;
        let luck = remote.request("writing", &path)?;
        if luck != Luck::FailsLate {
            let mut writer = remote.content.create(&path)?;
            let copied = io::copy(&mut Cursor::new(content), &mut writer);
            copied.map_err(|e| unavailable(&e.to_string(), false))?;
            writer.finish()?;
            remote.machine.world.note(&format!("{} writes {path}", remote.machine.name));
        }
        remote.done(luck, "writing", &path, ())
    }
}

fn unavailable(why: &str, in_doubt: bool) -> BlobError {
    BlobError { trouble: Trouble::Unavailable, in_doubt, message: format!("the simulated store: {why}") }
}
