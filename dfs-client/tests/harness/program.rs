//! Steps of a program, and random programs.

use super::dice::Dice;
use super::wire::{Cable, Loss};

pub const MOUNTS: u8 = 3;
pub const NAMES: u8 = 3;
pub const DIRECTORIES: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Read,
    Write,
    Truncate,
}

/// Which nodes die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    All,
    /// Those of one chain.
    Chain(u8),
    One(u8),
}

/// One step. `m` is a mount, `f` a name, `h` counts the open handles of the mount. A step that makes no sense where it stands is
/// skipped, so that any part of a program is a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Create {
        m: u8,
        f: u8,
    },
    Open {
        m: u8,
        f: u8,
        how: How,
    },
    Write {
        m: u8,
        h: u8,
        at: u64,
        len: u32,
    },
    Append {
        m: u8,
        h: u8,
        len: u32,
    },
    SetLength {
        m: u8,
        h: u8,
        len: u64,
    },
    Read {
        m: u8,
        h: u8,
        at: u64,
        len: u32,
    },
    /// In order, this many times 128 KiB.
    ReadOn {
        m: u8,
        h: u8,
        times: u8,
    },
    Fsync {
        m: u8,
        h: u8,
        data_only: bool,
    },
    Flush {
        m: u8,
        h: u8,
    },
    SyncAll {
        m: u8,
    },
    Close {
        m: u8,
        h: u8,
    },
    Stat {
        m: u8,
        f: u8,
    },
    Rename {
        m: u8,
        f: u8,
        to: u8,
    },
    Unlink {
        m: u8,
        f: u8,
    },
    Wait {
        ms: u32,
    },
    Together(Box<Step>, Box<Step>),
    Power {
        nodes: Nodes,
        back_ms: u32,
    },
    Crash {
        nodes: Nodes,
        back_ms: u32,
    },
    Lose {
        m: u8,
        cable: Cable,
        loss: Loss,
        count: u8,
    },
    Cut {
        m: u8,
        cable: Cable,
        ms: u32,
    },
    Kill {
        m: u8,
    },
    MakeDirectory {
        m: u8,
        d: u8,
    },
    Make {
        m: u8,
        d: u8,
        n: u8,
    },
    SyncDirectory {
        m: u8,
        d: u8,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub seed: u64,
    pub steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Theme {
    Mixed,
    /// Overwrites and power cuts.
    Rewrite,
    /// Truncation by one against writes by another.
    Cut,
    /// What is read ahead or kept while another writes.
    Fresh,
    /// Fsync by a mount that did not write.
    Foreign,
    /// Mounts that die, and files that grow.
    Dead,
    /// Sessions that expire.
    Evicted,
    Directories,
}

const THEMES: &[Theme] = &[
    Theme::Mixed,
    Theme::Mixed,
    Theme::Rewrite,
    Theme::Rewrite,
    Theme::Cut,
    Theme::Cut,
    Theme::Fresh,
    Theme::Foreign,
    Theme::Dead,
    Theme::Dead,
    Theme::Evicted,
    Theme::Directories,
];

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;

struct Author {
    dice: Dice,
    theme: Theme,
    mounts: u64,
    names: u64,
    /// Where most of what happens happens.
    places: Vec<u64>,
}

pub fn random(seed: u64) -> Program {
    let mut dice = Dice::new(seed ^ 0x6d6f_6465_6c21);
    let theme = *dice.pick(THEMES);
    let mounts = if theme == Theme::Rewrite && dice.one_in(2) {
        1
    } else {
        dice.between(2, 3)
    };
    let names = if dice.one_in(3) { dice.between(2, 3) } else { 1 };
    let far = [
        0,
        0,
        BLOCK,
        3 * BLOCK,
        MIB - BLOCK,
        MIB,
        4 * MIB - BLOCK,
        4 * MIB,
        9 * MIB,
    ];
    let places = (0..dice.between(1, 3)).map(|_| *dice.pick(&far)).collect();
    let mut author = Author {
        dice,
        theme,
        mounts,
        names,
        places,
    };
    let steps = author.write();
    Program { seed, steps }
}

impl Author {
    fn mount(&mut self) -> u8 {
        self.dice.below(self.mounts) as u8
    }

    fn name(&mut self) -> u8 {
        self.dice.below(self.names) as u8
    }

    fn handle(&mut self) -> u8 {
        self.dice.below(4) as u8
    }

    fn place(&mut self) -> u64 {
        let places = self.places.clone();
        let place = *self.dice.pick(&places);
        match self.dice.below(8) {
            0 => place + self.dice.below(BLOCK),
            1 => place + BLOCK,
            2 => place + 2 * BLOCK + self.dice.below(100),
            _ => place,
        }
    }

    fn size(&mut self) -> u32 {
        match self.dice.below(12) {
            0..=2 => self.dice.between(1, 200) as u32,
            3..=6 => 4096,
            7 => 8192,
            8 => 6000,
            9 => 4000,
            10 => self.dice.between(1, 20_000) as u32,
            _ => 70_000,
        }
    }

    fn write(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.theme == Theme::Directories {
            self.directories(&mut steps);
            return steps;
        }
        for f in 0..self.names as u8 {
            let m = self.mount();
            steps.push(Step::Create { m, f });
            if self.theme == Theme::Fresh || self.dice.one_in(4) {
                let len = self.dice.between(1, 10) * MIB + self.dice.below(2) * 1_000;
                steps.push(Step::SetLength { m, h: 0, len });
            }
        }
        if self.mounts > 1 && !self.dice.one_in(4) {
            for m in 0..self.mounts as u8 {
                if self.dice.one_in(2) {
                    steps.push(Step::Open {
                        m,
                        f: 0,
                        how: How::Write,
                    });
                }
            }
        }
        let count = self.dice.between(4, 24);
        let scene_at = self.dice.below(2 * count);
        for number in 0..count {
            if number == scene_at {
                self.scene(&mut steps);
            }
            let step = self.step();
            steps.push(step);
        }
        if !self.dice.one_in(3) {
            for m in 0..self.mounts as u8 {
                if self.dice.one_in(2) {
                    let (h, data_only) = (self.handle(), self.dice.one_in(2));
                    steps.push(Step::Fsync { m, h, data_only });
                }
            }
            steps.push(self.power());
        }
        steps
    }

    /// What random steps rarely come to by themselves, with what they add before, after, and in the other mounts' state.
    fn scene(&mut self, steps: &mut Vec<Step>) {
        let m = self.mount();
        let other = ((u64::from(m) + 1) % self.mounts) as u8;
        match self.theme {
            Theme::Evicted => self.eviction((m, other), steps),
            Theme::Fresh => self.overtaken((m, other), steps),
            Theme::Dead => self.death((m, other), steps),
            Theme::Foreign => {
                let write = self.write_step(m, 0);
                steps.extend([
                    Step::Open {
                        m,
                        f: 0,
                        how: How::Write,
                    },
                    write,
                ]);
                steps.push(if self.dice.one_in(3) {
                    Step::Close { m, h: 0 }
                } else {
                    Step::Flush { m, h: 0 }
                });
                steps.push(Step::Open {
                    m: other,
                    f: 0,
                    how: How::Read,
                });
                let (h, fsync) = (self.handle(), self.fsync(other, 0));
                steps.push(if self.dice.one_in(2) {
                    self.fsync(other, h)
                } else {
                    fsync
                });
            }
            _ => {}
        }
    }

    /// A mount is cut off from the group for longer than a session lives, and others go on.
    fn eviction(&mut self, (m, other): (u8, u8), steps: &mut Vec<Step>) {
        let (at, len) = (self.place(), self.size());
        steps.push(Step::Open {
            m: other,
            f: 0,
            how: How::Write,
        });
        steps.push(Step::Write {
            m: other,
            h: 0,
            at,
            len,
        });
        steps.push(Step::Flush { m: other, h: 0 });
        steps.push(Step::Open {
            m,
            f: 0,
            how: How::Read,
        });
        let cable = if self.dice.one_in(4) { Cable::Both } else { Cable::Group };
        let ms = self.dice.between(66_000, 75_000) as u32;
        steps.push(Step::Cut { m, cable, ms });
        if self.dice.one_in(3) {
            let write = self.write_step(m, 0);
            steps.push(write);
        }
        steps.push(Step::Unlink { m: other, f: 0 });
        steps.push(Step::Close { m: other, h: 0 });
        let ms = self.dice.between(61_500, 70_000) as u32;
        steps.push(Step::Wait { ms });
        for h in 0..2 {
            steps.push(Step::Read { m, h, at, len });
        }
    }

    /// A mount reads in order, and another writes where it will come to.
    fn overtaken(&mut self, (m, other): (u8, u8), steps: &mut Vec<Step>) {
        let h = self.handle();
        steps.push(Step::Open {
            m: other,
            f: 0,
            how: How::Write,
        });
        let len = self.dice.between(4, 12) * MIB;
        steps.push(Step::SetLength { m: other, h: 0, len });
        steps.push(Step::Open {
            m,
            f: 0,
            how: How::Read,
        });
        let (first, then) = (self.dice.between(8, 20) as u8, self.dice.between(4, 30) as u8);
        steps.push(Step::ReadOn { m, h, times: first });
        let at = u64::from(first) * (128 << 10) + self.dice.below(3) * MIB;
        steps.push(Step::Write {
            m: other,
            h: 0,
            at,
            len: 4096,
        });
        steps.push(if self.dice.one_in(2) {
            Step::Flush { m: other, h: 0 }
        } else {
            Step::Close { m: other, h: 0 }
        });
        if self.dice.one_in(3) {
            steps.push(Step::Stat { m, f: 0 });
        }
        steps.push(Step::Open {
            m,
            f: 0,
            how: How::Read,
        });
        steps.push(Step::ReadOn { m, h, times: then });
    }

    /// A mount dies between its data and their length, and the file grows.
    fn death(&mut self, (m, other): (u8, u8), steps: &mut Vec<Step>) {
        let h = self.handle();
        steps.push(Step::Open {
            m,
            f: 0,
            how: How::Write,
        });
        steps.push(Step::Open {
            m: other,
            f: 0,
            how: How::Write,
        });
        let write = self.write_step(m, h);
        steps.push(write);
        if self.dice.one_in(3) {
            let fsync = self.fsync(m, h);
            let write = self.write_step(m, h);
            steps.extend([fsync, write]);
        }
        let ms = self.dice.between(480, 1_400) as u32;
        steps.push(Step::Wait { ms });
        steps.push(Step::Kill { m });
        if self.dice.one_in(3) {
            steps.push(Step::Open {
                m: other,
                f: 0,
                how: How::Truncate,
            });
        }
        let grow = match self.dice.below(3) {
            0 => self.write_step(other, 0),
            _ => self.set_length(other, 0),
        };
        steps.push(grow);
    }

    fn power(&mut self) -> Step {
        let nodes = match self.dice.below(4) {
            0 => Nodes::Chain(self.dice.below(8) as u8),
            _ => Nodes::All,
        };
        let back_ms = self.dice.between(20, 600) as u32;
        Step::Power { nodes, back_ms }
    }

    fn step(&mut self) -> Step {
        let (m, h, f) = (self.mount(), self.handle(), self.name());
        let special = self.dice.below(100);
        match self.theme {
            Theme::Rewrite if special < 12 => return self.power(),
            Theme::Rewrite if special < 30 => return self.fsync(m, h),
            Theme::Cut if special < 18 => return self.set_length(m, h),
            Theme::Cut if special < 22 => {
                return Step::Open {
                    m,
                    f,
                    how: How::Truncate,
                };
            }
            Theme::Fresh if special < 20 => {
                let times = self.dice.between(1, 12) as u8;
                return Step::ReadOn { m, h, times };
            }
            Theme::Fresh if special < 35 => return Step::Open { m, f, how: How::Read },
            Theme::Dead if special < 9 => return Step::Kill { m },
            Theme::Dead if special < 18 => return self.set_length(m, h),
            Theme::Evicted if special < 6 => {
                let cable = *self.dice.pick(&[Cable::Group, Cable::Nodes, Cable::Both]);
                let ms = if cable == Cable::Nodes {
                    self.dice.between(31_000, 50_000)
                } else {
                    self.dice.between(61_000, 70_000)
                };
                let ms = ms as u32;
                return Step::Cut { m, cable, ms };
            }
            Theme::Evicted if special < 8 => return Step::Wait { ms: 33_000 },
            Theme::Evicted if special < 9 => return Step::Wait { ms: 65_000 },
            Theme::Evicted if special < 16 => return Step::Unlink { m, f },
            _ => {}
        }
        self.usual(m, h, f)
    }

    fn usual(&mut self, m: u8, h: u8, f: u8) -> Step {
        match self.dice.below(100) {
            0..=24 => self.write_step(m, h),
            25..=29 => Step::Append { m, h, len: self.size() },
            30..=41 => {
                let (at, len) = (self.place(), self.size());
                Step::Read { m, h, at, len }
            }
            42..=45 => {
                let times = self.dice.between(1, 8) as u8;
                Step::ReadOn { m, h, times }
            }
            46..=53 => self.fsync(m, h),
            54..=57 => Step::Flush { m, h },
            58..=63 => Step::Close { m, h },
            64..=71 => {
                let how = *self
                    .dice
                    .pick(&[How::Read, How::Write, How::Write, How::Write, How::Truncate]);
                Step::Open { m, f, how }
            }
            72..=73 => Step::Create { m, f },
            74..=77 => self.set_length(m, h),
            78 => Step::Stat { m, f },
            79 if self.dice.one_in(2) => Step::SyncAll { m },
            79 => Step::Rename { m, f, to: self.name() },
            80 => Step::Unlink { m, f },
            81..=88 => {
                let ms = *self.dice.pick(&[3, 30, 200, 600, 1_200, 3_000]);
                Step::Wait { ms }
            }
            89..=91 => self.together(m),
            93 => {
                let nodes = match self.dice.below(3) {
                    0 => Nodes::All,
                    1 => Nodes::Chain(self.dice.below(8) as u8),
                    _ => Nodes::One(self.dice.below(4) as u8),
                };
                let back_ms = self.dice.between(20, 600) as u32;
                Step::Crash { nodes, back_ms }
            }
            94..=96 => {
                let cable = *self.dice.pick(&[Cable::Group, Cable::Nodes, Cable::Both]);
                let loss = *self.dice.pick(&[Loss::Request, Loss::Answer, Loss::Answer, Loss::Late]);
                let count = self.dice.between(1, 2) as u8;
                Step::Lose { m, cable, loss, count }
            }
            97 => {
                let cable = *self.dice.pick(&[Cable::Group, Cable::Nodes, Cable::Both]);
                let ms = self.dice.between(50, 3_000) as u32;
                Step::Cut { m, cable, ms }
            }
            98 => Step::Kill { m },
            // 92 and 99.
            _ => self.power(),
        }
    }

    fn write_step(&mut self, m: u8, h: u8) -> Step {
        let (at, len) = (self.place(), self.size());
        Step::Write { m, h, at, len }
    }

    fn fsync(&mut self, m: u8, h: u8) -> Step {
        let data_only = self.dice.one_in(2);
        Step::Fsync { m, h, data_only }
    }

    fn set_length(&mut self, m: u8, h: u8) -> Step {
        let len = match self.dice.below(5) {
            0 => 0,
            1 => self.place() + u64::from(self.size()),
            2 => self.place(),
            3 => self.place() + self.dice.below(BLOCK),
            _ => self.place() + MIB,
        };
        Step::SetLength { m, h, len }
    }

    /// Two calls at the same time: of two mounts, or one of them an fsync or a close.
    fn together(&mut self, m: u8) -> Step {
        let one = |author: &mut Self, m: u8, most: u64| {
            let h = author.handle();
            match author.dice.below(most) {
                0 => author.fsync(m, h),
                1 => Step::Flush { m, h },
                2 | 3 => author.write_step(m, h),
                4 => author.set_length(m, h),
                _ => {
                    let (at, len) = (author.place(), author.size());
                    Step::Read { m, h, at, len }
                }
            }
        };
        let (other, most) = if self.mounts < 2 || self.dice.one_in(3) {
            (m, 2)
        } else {
            (
                ((u64::from(m) + 1 + self.dice.below(self.mounts - 1)) % self.mounts) as u8,
                6,
            )
        };
        let (mut first, mut second) = (one(self, m, 6), one(self, other, most));
        if other == m && self.dice.one_in(2) {
            // What is written while the first is under way arrives while it tells the length.
            first = one(self, m, 2);
            let h = self.handle();
            let write = self.write_step(m, h);
            second = Step::Together(Box::new(write), Box::new(second));
        }
        Step::Together(Box::new(first), Box::new(second))
    }

    fn directories(&mut self, steps: &mut Vec<Step>) {
        // A mount holds what it makes once it has been there for a moment.
        steps.push(Step::Create { m: 0, f: 0 });
        steps.push(Step::Wait { ms: 100 });
        for d in 0..DIRECTORIES {
            let m = if self.dice.one_in(4) { self.mount() } else { 0 };
            steps.push(Step::MakeDirectory { m, d });
        }
        for _ in 0..self.dice.between(4, 20) {
            let (m, d) = (self.mount(), self.dice.below(u64::from(DIRECTORIES)) as u8);
            let step = match self.dice.below(20) {
                0..=8 => Step::Make {
                    m,
                    d,
                    n: self.dice.below(4) as u8,
                },
                9..=12 => Step::SyncDirectory { m, d },
                13 | 14 => {
                    let ms = self.dice.between(500, 4_000) as u32;
                    Step::Cut {
                        m,
                        cable: Cable::Group,
                        ms,
                    }
                }
                15 => Step::Kill { m },
                16 => Step::Lose {
                    m,
                    cable: Cable::Group,
                    loss: Loss::Answer,
                    count: 1,
                },
                _ => {
                    let ms = *self.dice.pick(&[3, 200, 1_000, 2_000]);
                    Step::Wait { ms }
                }
            };
            steps.push(step);
        }
    }
}
