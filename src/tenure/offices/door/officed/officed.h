/* officed: the office's end of the door.
 *
 * It runs inside the office as the child of PID 1 and dials out to UNIX sockets of the server (the doorway), because
 * an office has no network on which anybody could call it. It keeps IDLE_CONNECTIONS open to the door socket; the server
 * picks one, writes a request, and that connection becomes the session. So every session has a kernel socket of its
 * own (flow control included), and an awake office answers without a connection being made first.
 *
 * Wire format, all integers big-endian.
 *   request   u32 length, then fields: u8 tag, u32 length, bytes
 *             o op   k key   a argument*   e NAME=value*   d directory   u user   t "rows cols"   T timeout in ms   w wait in ms
 *             h hosts file
 *   frame     u8 type, u32 length, bytes
 *   to us     0 stdin   e end of stdin   w "rows cols"   s "signal"
 *   from us   p started   1 stdout (empty: are you there?)   2 stderr   x "code timed_out"   j job status
 *             d drained or refused, a line each   f forwards: what could not be done, a line each   ! error ("kind: message")
 *
 * Operations: ping; run (attached: ends with the connection); job-start, job-status, job-stop, job-forget (a job belongs to
 * its key, not to a connection: its exit code stays in --jobs, its output until forgotten); dial (bytes to a port of the
 * office); ssh (bytes to an `sshd -i` of its own); forwards (declares all forwards beside those of the command line, each an
 * argument ADDRESS:PORT=SOCKET with the name of a socket beside the door's, and the office's hosts file: what is not declared
 * ends, with its connections); drain (lets go of every connection until the door is there anew; refused while commands or
 * jobs run, or when something else would keep the office's memory from being saved).
 *
 * It is one static binary mounted read-only from the host, so an office that deleted its root still has a door.
 */
#ifndef OFFICED_H
#define OFFICED_H
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    IDLE_CONNECTIONS = 4,
    REQUEST_BYTES_MAX = 2 << 20,
    FRAME_BYTES_MAX = 1 << 18,
    CHUNK_BYTES = 1 << 16,
    ARGS_MAX = 4096,
    SESSIONS_MAX = 512,
    THREAD_STACK_BYTES = 256 << 10,
    SPOOL_HALF_BYTES = 512 << 10, /* a job keeps at least this much of its last output */
    TAIL_BYTES = 1 << 16,
    KILL_GRACE_MS = 5000,
    CLOSE_WAIT_MS = 30000, /* between two things that the server still sends */
    REDIAL_MS_MIN = 10,
    REDIAL_MS_MAX = 500,
    STOP_GRACE_MS = 1000,
    FORGOTTEN_DAYS = 14,
    FORWARD_PATIENCE_MS = 20000,
    STALL_PROBE_MS = 1000,
    DRAIN_MS = 5000,
    DRAINED_REDIAL_MS = 5,  /* one waits for the office's first answer after a restore */
    DRAINED_POLL_MS = 5000, /* but not for long: nobody may come */
};

/* What the command line said (main.c). */
extern const char *door_path, *jobs_dir, *hosts_path;
extern int own_process_space; /* all processes that we see are the office's */

/* io.c: time, whole reads and writes, frames, threads */
int64_t now_ms(void);
void sleep_ms(int ms);
int write_all(int fd, const void *data, size_t n);
int read_all(int fd, void *data, size_t n);
int send_in_place(int fd, char type, char *buf, uint32_t n);
int send_frame(int fd, char type, const void *data, uint32_t n);
int send_text(int fd, char type, const char *format, ...);
int dial_unix(const char *path);
size_t add_line(char *at, size_t room, const char *format, ...);
void init_cond(pthread_cond_t *c);
void wait_cond(pthread_cond_t *c, pthread_mutex_t *lock, int64_t ms);
void init_threads(void);
int spawn_thread(void *(*f)(void *), void *arg);

/* request.c */
struct request {
    char *op, *key, *dir, *user, *tty, *hosts;
    char *argv[ARGS_MAX + 1], *env[ARGS_MAX + 8];
    int argc, envc;
    int64_t timeout_ms, wait_ms;
    char *raw;
};

struct request *read_request(int fd);
void free_request(struct request *r);
int valid_key(const char *k);

/* user.c */
struct user {
    uid_t uid;
    gid_t gid;
    char name[64], home[256], shell[128];
    gid_t groups[64];
    int groups_n;
};

int find_user(const char *name, struct user *u);

/* child.c: programs that we start, and their ends */
struct child {
    pid_t pid;
    int status, done, event_fd;
    struct child *next;
};

struct child *spawn(struct request *r, int in, int out, int err, int tty, char *why, size_t why_n);
void *reaper(void *unused);
void forget_child(struct child *c);
int exit_code(int status);
void kill_group(pid_t pid, int sig);
void end_child(struct child *c, int sig);
void signal_children(int sig);
int children_run(void);

/* attached.c, jobs.c, streams.c: what a session can be. Those of jobs.c answer 0 when the connection may go on. */
void run_attached(int conn, struct request *r);
size_t list_attached(char *at, size_t room);
size_t list_jobs(char *at, size_t room);
void init_attached(void);
void init_jobs(void);
int start_job(int conn, struct request *r);
int send_status(int conn, struct request *r);
int stop_job(int conn, struct request *r);
int forget_job(int conn, struct request *r);
void leave_jobs_unknown(void);
void *prune_jobs(void *unused);
void splice_both(int a, int b);
void dial_port(int conn, struct request *r);
void serve_ssh(int conn, struct request *r);

/* lines.c, obstacles.c: connections to the server, and living without */
void init_lines(void);
int dial_server(const char *path);
void pair_line(int fd, int other);
void hang_up(int fd);
int wait_while_drained(void);
int drain(int conn);
void wait_for_server(void);
size_t list_obstacles(char *at, size_t room);

/* sessions.c, forwards.c, sudo.c */
int enter_session(void); /* whether one more fits; leave_session() in any case that it did */
void leave_session(void);
void *keep_dialling(void *unused);
void start_forward(const char *text); /* before start_forwarding */
void start_forwarding(void);
int declare_forwards(int conn, struct request *r);
void *keep_elevating(void *unused);
int sudo_main(int argc, char **argv);

#endif
