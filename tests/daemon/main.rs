//! The program itself, as systemd, an operator and a shell meet it.

#![cfg(feature = "daemon")]

mod commands;
mod home;
#[path = "../sample/mod.rs"]
mod sample;
mod service;
