// Package deploy holds files to run the example programs with, to copy and change: a
// unit of systemd, and objects of Kubernetes. The tests decode each as its API does,
// and start the programs with the flags that stand there.
package deploy
