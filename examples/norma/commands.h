#pragma once

#include <CLI/CLI.hpp>

// The sub-commands of the program norma. Each adds itself and its flags to the command line.
void add_train(CLI::App& app);
void add_sample(CLI::App& app);
void add_eval(CLI::App& app);
void add_curves(CLI::App& app);
void add_tasks(CLI::App& app);
