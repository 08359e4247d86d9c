/* Start and stop. */
#include "officed.h"

#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

const char *door_path, *jobs_dir, *hosts_path;
int own_process_space;

static void make_dirs(const char *path) {
    char part[512];
    snprintf(part, sizeof part, "%s", path);
    for (char *p = part + 1; *p; p++)
        if (*p == '/') *p = 0, mkdir(part, 0755), *p = '/';
    mkdir(part, 0700);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "sudo")) return sudo_main(argc - 1, argv + 1);
    sigset_t held;
    sigemptyset(&held);
    sigaddset(&held, SIGCHLD);
    sigaddset(&held, SIGTERM);
    sigaddset(&held, SIGINT);
    sigaddset(&held, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &held, NULL);
    signal(SIGPIPE, SIG_IGN);
    umask(022);
    mallopt(M_ARENA_MAX, 1); /* an arena per thread would reserve more address space than a small office may have */
    init_threads();
    init_attached();
    init_jobs();
    init_lines();
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--door")) door_path = argv[i + 1];
        else if (!strcmp(argv[i], "--jobs")) jobs_dir = argv[i + 1];
        else if (!strcmp(argv[i], "--hosts")) hosts_path = argv[i + 1];
        else if (!strcmp(argv[i], "--own-process-space")) own_process_space = !strcmp(argv[i + 1], "yes");
    }
    if (!door_path || !jobs_dir) {
        fprintf(stderr, "usage: officed --door SOCKET --jobs DIRECTORY [--hosts FILE] [--own-process-space yes] "
                        "[--forward ADDRESS:PORT=SOCKET]...\n");
        return 2;
    }
    make_dirs(jobs_dir);
    spawn_thread(reaper, NULL);
    spawn_thread(prune_jobs, NULL);
    if (own_process_space) spawn_thread(keep_elevating, NULL);
    for (int i = 1; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], "--forward")) start_forward(argv[i + 1]);
    start_forwarding();
    /* last: once the door is open, the office has all that it may reach */
    for (int i = 0; i < IDLE_CONNECTIONS; i++) spawn_thread(keep_dialling, NULL);
    int sig;
    sigdelset(&held, SIGCHLD);
    sigwait(&held, &sig);
    leave_jobs_unknown();
    /* On a host (the fake sandbox) -1 would mean everybody: only the driver can say that all processes here are the office's. */
    if (own_process_space) kill(-1, SIGTERM);
    signal_children(SIGTERM);
    for (int64_t until = now_ms() + STOP_GRACE_MS; now_ms() < until && children_run();) sleep_ms(10);
    return 0;
}
